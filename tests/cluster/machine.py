"""What a machine of the cluster calls itself: Airflow's ``[core] hostname_callable`` on each of them."""

import os

VARIABLE = "CLUSTER_MACHINE"


def name() -> str:
    """Return the machine's name."""
    return os.environ[VARIABLE]
