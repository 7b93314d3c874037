"""What a triggerer knows of each account, sent as metrics every few seconds.

A poll only counts. The first metric of a process takes Airflow half a second, and longer if the name server
is slow, so metrics are sent in a thread.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_modelscope.metrics import show_account

if TYPE_CHECKING:
    from airflow_provider_modelscope.transport.event_loop import Client

INTERVAL = 5.0  # seconds

_reports: WeakKeyDictionary[Client, asyncio.Task[None]] = WeakKeyDictionary()
_sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="modelscope-metrics")  # one keeps the order


def start_report(client: Client, connection_id: str) -> None:
    """Send the metrics of a client's account until :func:`end_report`.

    :param connection_id: The tag. If several connections have the same account, it is the first one.
    """
    if client not in _reports:
        _reports[client] = asyncio.create_task(_report(client, connection_id))


def end_report(client: Client) -> None:
    """Send the metrics a last time."""
    if report := _reports.pop(client, None):
        report.cancel()


async def _report(client: Client, connection_id: str) -> None:
    try:
        while True:
            await asyncio.sleep(INTERVAL)
            _send(client, connection_id)
    finally:
        _send(client, connection_id)  # zeros, as a gauge keeps its last value


def _send(client: Client, connection_id: str) -> None:
    too_many_requests, client.too_many_requests = client.too_many_requests, 0
    _sender.submit(
        show_account,
        waiting=len(client.queue),
        running=client.queue.running,
        too_many_requests=too_many_requests,
        modelscope_conn_id=connection_id,
    )
