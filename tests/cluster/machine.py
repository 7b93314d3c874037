"""The name of a machine of the cluster. ``name`` is Airflow's ``[core] hostname_callable``."""

import os

VARIABLE = "CLUSTER_MACHINE"


def name() -> str:
    """Return the name of this machine."""
    return os.environ[VARIABLE]
