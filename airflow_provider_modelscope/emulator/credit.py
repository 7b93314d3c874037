"""Credit: what a generation costs, and exact amounts."""

from __future__ import annotations

from decimal import Decimal

CREDIT = 100_000
"""What an account has at the start: enough for any test that does not ask for less."""

MAX_CREDIT = 10**9

TIERS = {Decimal("0.2"): "light", Decimal("0.5"): "basic", Decimal(1): "standard", Decimal(2): "ultra"}
"""ModelScope's prices of one generation, and the word that it has for each."""

PRICES = {
    "Tongyi-MAI/Z-Image-Turbo": Decimal("0.2"),
    "MAILAND/majicflus_v1": Decimal("0.5"),
    "MusePublic/489_ckpt_FLUX_1": Decimal("0.5"),
    "Qwen/Qwen-Image": Decimal(1),
    "black-forest-labs/FLUX.1-Krea-dev": Decimal(1),
    "Qwen/Qwen-Image-2512": Decimal(2),
    "Qwen/Qwen-Image-Edit": Decimal(2),
}
"""The prices of some known models here. Which model is in which tier changes at ModelScope."""


def price_of(model: str) -> Decimal:
    """Return the price of one generation; 1 for a model that is not in the table."""
    return PRICES.get(model, Decimal(1))


def read_amount(value: object) -> Decimal:
    """Read an amount of credit.

    :raises ValueError: if it is not a number from 0 to ``MAX_CREDIT``.
    """
    # type, because bool is a subclass of int
    if type(value) not in (int, float, Decimal) or not 0 <= value <= MAX_CREDIT:  # type: ignore[operator]
        raise ValueError(f"credit must be a number from 0 to {MAX_CREDIT}")
    return Decimal(str(value))


def as_number(amount: Decimal) -> int | float:
    """Return an amount as JSON shows it: 143 rather than 143.0, and 0.3 rather than 0.30000000000000004."""
    return int(amount) if amount == int(amount) else float(amount)
