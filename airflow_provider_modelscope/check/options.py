"""The options of the command, for both of its forms."""

from __future__ import annotations

from typing import Any

DESCRIPTION = (
    "Check whether ModelScope behaves as this provider assumes. Prints one line for each assumption, "
    "without token and prompt."
)
EPILOG = "Exit code: 0 if all is as assumed, 1 if something differs, 2 if the service could not be asked."
OPTIONS: dict[str, dict[str, Any]] = {
    "--conn-id": {
        "default": "modelscope_default",
        "help": "the Airflow connection to check (default: %(default)s)",
    },
    "--model": {
        "default": "Tongyi-MAI/Z-Image-Turbo",
        "help": "the model to check (default: %(default)s, a cheap one)",
    },
    "--spend": {"action": "store_true", "help": "also generate one image, which costs credit"},
    "--json": {"action": "store_true", "help": "print the report as JSON"},
}
