"""The Airflow that runs, and names that moved between Airflow 3.0 and 3.4.

Each name is imported from its home when it is first used. All other names are imported from ``airflow.sdk``,
which has them in every one of these versions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import BaseHook as BaseHook
    from airflow.sdk.bases.decorator import determine_kwargs as determine_kwargs
    from airflow.sdk.configuration import conf as conf
    from airflow.sdk.definitions.context import context_merge as context_merge
    from airflow.sdk.exceptions import (
        AirflowException as AirflowException,
        AirflowFailException as AirflowFailException,
        AirflowNotFoundException as AirflowNotFoundException,
        AirflowSensorTimeout as AirflowSensorTimeout,
        AirflowSkipException as AirflowSkipException,
        AirflowTaskTimeout as AirflowTaskTimeout,
        TaskDeferred as TaskDeferred,
    )
    from airflow.sdk.lineage import get_hook_lineage_collector as get_hook_lineage_collector
    from airflow.sdk.observability.stats import Stats as Stats
    from airflow.sdk.plugins_manager import AirflowPlugin as AirflowPlugin
    from airflow.utils.net import get_hostname as get_hostname

    AIRFLOW_VERSION: tuple[int, int]

DYNAMIC = "DYNAMIC (set during execution)"  # what Airflow shows of a field that a function sets

_EXCEPTIONS = ("airflow.sdk.exceptions", "airflow.exceptions")
# Newest first: a newer Airflow may keep an older home, but warn of it.
_HOMES = {
    "AirflowException": _EXCEPTIONS,
    "AirflowFailException": _EXCEPTIONS,
    "AirflowNotFoundException": _EXCEPTIONS,
    "AirflowPlugin": ("airflow.sdk.plugins_manager", "airflow.plugins_manager"),
    "AirflowSensorTimeout": _EXCEPTIONS,
    "AirflowSkipException": _EXCEPTIONS,
    "AirflowTaskTimeout": _EXCEPTIONS,
    "BaseHook": ("airflow.sdk", "airflow.hooks.base"),
    "Stats": ("airflow.sdk.observability.stats", "airflow.observability.stats", "airflow.stats"),
    "TaskDeferred": _EXCEPTIONS,
    # Since 3.2 Airflow has two ``Stats``. Its triggerer sets up this one.
    "TriggererStats": ("airflow.observability.stats", "airflow.stats"),
    "conf": ("airflow.sdk.configuration", "airflow.configuration"),
    "context_merge": ("airflow.sdk.definitions.context", "airflow.utils.context"),
    "determine_kwargs": ("airflow.sdk.bases.decorator", "airflow.utils.operator_helpers"),
    "get_hook_lineage_collector": ("airflow.sdk.lineage", "airflow.lineage.hook"),
    "get_hostname": ("airflow.utils.net",),
}
_RENAMED = {"TriggererStats": "Stats"}  # the name in Airflow, if it differs


def __getattr__(name: str) -> Any:
    """Return a name from the first of its homes that this Airflow has."""
    if name == "AIRFLOW_VERSION":
        from airflow import __version__

        return tuple(int(number) for number in __version__.split(".")[:2])
    for home in _HOMES.get(name, ()):
        try:
            found = getattr(import_module(home), _RENAMED.get(name, name))
        except (ImportError, AttributeError):  # of another version of Airflow
            continue
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r} with this version of Airflow")
