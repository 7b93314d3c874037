"""The command line of the emulator."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from airflow_provider_modelscope.emulator.credit import CREDIT, MAX_CREDIT
from airflow_provider_modelscope.emulator.faults import Fault, describe_faults
from airflow_provider_modelscope.emulator.parameters import model_exists
from airflow_provider_modelscope.emulator.server import Exchange, first_id, serving
from airflow_provider_modelscope.emulator.service import Service
from airflow_provider_modelscope.emulator.traits import describe_traits, read_traits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status."""
    options = _parser().parse_args(arguments)
    service = Service(
        duration=options.duration,
        max_running=options.max_running,
        tokens=options.token,
        faults=options.fault,
        credit=options.credit,
        retired_models=options.retired_model,
        without=options.without,
        first_id=first_id(),
    )
    try:
        asyncio.run(_serve(service, options))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        print(f"Cannot listen on {options.host} port {options.port}: {reason}.", file=sys.stderr)
        return 1
    return 0


async def _serve(service: Service, options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(service, _log, options.host, options.port) as base_url:
        password = options.token[0] if options.token else "any-token"
        connection = json.dumps({"conn_type": "modelscope", "password": password, "host": base_url})
        print(f"ModelScope emulator on {base_url} (Ctrl-C stops it). The connection for Airflow:")
        print(f"export AIRFLOW_CONN_MODELSCOPE_DEFAULT={shlex.quote(connection)}", flush=True)
        await stop.wait()


def _log(exchange: Exchange) -> None:
    words = [
        time.strftime("%H:%M:%S"),
        exchange.method,
        exchange.path,
        "->",
        str(exchange.status or "no response"),
        f"generation {exchange.generation_id}" if exchange.generation_id else "",
        exchange.note,
    ]
    print(" ".join(ascii(word)[1:-1][:200] for word in words if word), file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_modelscope.emulator",
        description="Emulate ModelScope's image API, without a token or a network. Its credit costs nothing.",
        epilog=f"{describe_faults()}\n\n{describe_traits()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port",
        default=8765,
        type=_within(int, 0, 65535),
        help="port to listen on; 0 chooses a free port (default: %(default)s)",
    )
    parser.add_argument(
        "--duration",
        default=3,
        type=_within(float, 0, 86400),
        help="seconds that a generation takes (default: %(default)s)",
    )
    parser.add_argument(
        "--max-running",
        default=1,
        type=_within(int, 1, 1000),
        help="number of generations that an account (a token) may run at the same time "
        "(default: %(default)s)",
    )
    repeatable = partial(parser.add_argument, action="append", default=[])
    repeatable(
        "--token",
        type=_token,
        help="a valid token; without this option every token is valid but one of zeros; can be repeated",
    )
    parser.add_argument(
        "--credit",
        default=CREDIT,
        type=_within(float, 0, MAX_CREDIT),
        help="credit that each account (token) has at the start (default: %(default)s)",
    )
    repeatable(
        "--retired-model", type=_model, metavar="ID", help="a model that is no longer served; can be repeated"
    )
    repeatable(
        "--fault",
        type=_accepted_by(Fault.parse),
        metavar="WHERE:WHAT[:COUNT]",
        help="a fault to inject, see below; can be repeated",
    )
    repeatable(
        "--without",
        type=_accepted_by(lambda trait: read_traits([trait])),
        metavar="TRAIT",
        help="a trait that the service does not have, see below; can be repeated",
    )
    return parser


def _within(kind: Callable[[str], Number], low: Number, high: Number) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        with suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")

    return parse


def _token(text: str) -> str:
    if not text or any(character.isspace() for character in text):
        raise argparse.ArgumentTypeError("a token must not be empty or contain spaces")
    return text


def _model(text: str) -> str:
    if not model_exists(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of a model, such as Qwen/Qwen-Image")
    return text


def _accepted_by(read: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


if __name__ == "__main__":
    sys.exit(main())
