"""The report: what was assumed, what came, and whether it differs. It can be published."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_modelscope import __version__
from airflow_provider_modelscope.check.assumptions import ASSUMPTIONS
from airflow_provider_modelscope.redaction import one_line

OK, DIFFERS, NOT_TOLD = "ok", "differs", "not told"
PROMPT = "A lighthouse on a cliff at dawn"

_MOST = 200  # characters of what came
_PROMPT_BEGINS = re.compile(f"{PROMPT[:12]}.*", re.IGNORECASE | re.DOTALL)  # the service may cut it off


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    :param name: The assumption's, in ``ASSUMPTIONS``.
    :param came: What came, in a few words.
    :param verdict: ``ok``, ``differs``, or ``not told`` if the service did not tell.
    """

    name: str
    came: str
    verdict: str

    def __str__(self) -> str:
        return f"{self.verdict:<9} {ASSUMPTIONS[self.name]} -> {self.came}"


@dataclass(kw_only=True)
class Report:
    """All lines, and what the check cost.

    :param secrets: Patterns of what must not be shown.
    :param credit_used: None if it is not known.
    :param error: Why the service could not be asked; empty if it could.
    """

    service: str = ""
    model: str = ""
    secrets: Sequence[re.Pattern[str]] = ()
    findings: list[Finding] = field(default_factory=list)
    credit_used: float | None = 0.0
    error: str = ""

    def shown(self, text: str, most: int = _MOST) -> str:
        """Return a text of the service on one line, without the token and the prompt, which it may repeat."""
        for secret in self.secrets:
            text = secret.sub("***", text)
        return one_line(_PROMPT_BEGINS.sub("(the prompt)", text), most)

    @property
    def exit_code(self) -> int:
        """0: all as assumed; 1: something differs; 2: the service could not be asked."""
        if self.error:
            return 2
        return int(any(finding.verdict == DIFFERS for finding in self.findings))

    def summary(self) -> str:
        """Return the last two lines of the report."""
        verdicts = [finding.verdict for finding in self.findings]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in (OK, DIFFERS, NOT_TOLD))
        used = "not told" if self.credit_used is None else amount(self.credit_used)
        return f"{counts}\nCredit used: {used}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "version": __version__,
            "service": self.service,
            "model": self.model,
            "findings": [
                {
                    "name": finding.name,
                    "assumption": ASSUMPTIONS[finding.name],
                    "came": finding.came,
                    "verdict": finding.verdict,
                }
                for finding in self.findings
            ],
            "credit_used": self.credit_used,
            "error": self.error or None,
        }


def amount(credit: float) -> str:
    """Return an amount of credit without the rounding errors of binary fractions."""
    return f"{credit:.10g}"
