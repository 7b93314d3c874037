"""``python -m airflow_provider_modelscope.check`` checks whether the service behaves as assumed."""

from __future__ import annotations

import json
import re
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from typing import Any

from airflow_provider_modelscope.check.options import DESCRIPTION, EPILOG, OPTIONS
from airflow_provider_modelscope.check.report import Finding, Report
from airflow_provider_modelscope.check.service import ServiceCheck
from airflow_provider_modelscope.exceptions import InvalidConnectionError, ModelScopeError
from airflow_provider_modelscope.hooks.connection import secrets_of
from airflow_provider_modelscope.hooks.modelscope import ModelScopeHook

_MAX_ERROR = 1000  # characters


def main(arguments: list[str]) -> int:
    """Check the service of a connection, and return the exit code."""
    parser = ArgumentParser(
        prog="python -m airflow_provider_modelscope.check", description=DESCRIPTION, epilog=EPILOG
    )
    for flag, settings in OPTIONS.items():
        parser.add_argument(flag, **settings)
    return run(parser.parse_args(arguments))


def run(
    options: Namespace,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Print the report, and return the exit code.

    :param sleep: Waits for some seconds.
    :param clock: Returns seconds, and does not go back.
    """
    report = Report(model=options.model)
    # With --json, the report is all that is on stdout: Airflow may log there.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        for finding in _check(report, options, sleep, clock):
            if not options.json:
                print(finding, flush=True)
    if options.json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    elif report.error:
        print(f"Cannot check the service: {report.error}", file=sys.stderr)
    else:
        print(report.summary())
    return report.exit_code


def _check(
    report: Report,
    options: Namespace,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> Iterator[Finding]:
    try:
        hook = ModelScopeHook(options.conn_id)
        # In any case: the host of a URL is shown in lower case, a status in capitals.
        report.secrets = [
            re.compile(secret.pattern, re.IGNORECASE) for secret in secrets_of(_connection(options.conn_id))
        ]
        report.service = hook.account.base_url
        check = ServiceCheck(hook.account, options.model, report, sleep=sleep, clock=clock)
        yield from check.run(spend=options.spend)
    except ModelScopeError as error:
        report.error = report.shown(str(error), _MAX_ERROR)


def _connection(conn_id: str) -> Any:
    try:
        return ModelScopeHook.get_connection(conn_id)
    except Exception as error:  # each secrets backend has errors of its own
        raise InvalidConnectionError(f"Cannot read the Airflow connection {conn_id!r}: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
