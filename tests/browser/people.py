"""Airflow's users: an admin, and two users who may each see one Dag.

Airflow's FAB auth manager authorizes them, as in many deployments. It has permissions per Dag.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

FAB = {
    "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
    "AIRFLOW__FAB__AUTH_RATE_LIMITED": "False",  # by default 5 logins per 40 s
}

# What FAB's role Viewer may read around a Dag run, except ``DAGs`` (all Dags), plus the plugins.
READABLE = (
    "Website",
    "DAG Code",
    "DAG Dependencies",
    "DAG Runs",
    "DAG Versions",
    "DAG Warnings",
    "Task Instances",
    "Task Logs",
    "XComs",
    "Assets",
    "HITL Detail",
    "ImportError",
    "Plugins",  # without this, the UI shows no tabs of plugins
)


class Person(NamedTuple):
    """A user of Airflow.

    :param dag_id: The only Dag that they may see. None for an admin.
    """

    name: str
    dag_id: str | None = None

    @property
    def login(self) -> tuple[str, str]:
        """User name and password."""
        return self.name, f"password-of-{self.name}"

    @property
    def role(self) -> str:
        """The name of their role."""
        return "Admin" if self.dag_id is None else f"Sees {self.dag_id}"


ADMIN = Person("admin")
VIEWER = Person("viewer", "browser_images")
STRANGER = Person("stranger", "browser_other")


def add_users(airflow: RealAirflow) -> None:
    """Add the users and their roles to a migrated Airflow."""
    airflow.run("dags", "reserialize")  # creates the resources ``DAG:...``
    permissions = [
        {"name": person.role, "resource": resource, "action": "can_read"}
        for person in (VIEWER, STRANGER)
        for resource in (*READABLE, f"DAG:{person.dag_id}")
    ]
    roles = airflow.home / "roles.json"
    roles.write_text(json.dumps(permissions))
    airflow.run("roles", "import", str(roles))
    for person in (ADMIN, VIEWER, STRANGER):
        name, password = person.login
        login = ("--username", name, "--password", password, "--role", person.role)
        airflow.run(
            "users",
            "create",
            *login,
            "--firstname",
            name,
            "--lastname",
            name,
            "--email",
            f"{name}@example.org",
        )
