"""The command ``airflow modelscope check``. Airflow 3.2 and later load this module in all their commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from airflow_provider_modelscope.check.options import DESCRIPTION, EPILOG, OPTIONS

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow.cli.cli_config import CLICommand


def commands() -> list[CLICommand]:
    """Return the commands that this provider adds to ``airflow``."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    return [
        GroupCommand(
            name="modelscope",
            help="Commands of the ModelScope provider",
            subcommands=[
                ActionCommand(
                    name="check",
                    help="Check whether ModelScope behaves as assumed",
                    description=DESCRIPTION,
                    epilog=EPILOG,
                    func=_check,
                    args=[Arg((flag,), **settings) for flag, settings in OPTIONS.items()],  # type: ignore[no-untyped-call]
                )
            ],
        )
    ]


def _check(options: Namespace) -> None:
    from airflow_provider_modelscope.check.__main__ import run

    sys.exit(run(options))
