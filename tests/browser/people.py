"""Who looks at Airflow: one who may do everything, one who may see one Dag, and one who may see another.

Airflow's FAB auth manager decides, as it does in many a deployment: it has rights for each Dag.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.support.real_airflow import RealAirflow

FAB = {
    "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
    "AIRFLOW__FAB__AUTH_RATE_LIMITED": "False",  # by default five may log in within 40 s
}

# What FAB's role Viewer may read around a Dag run, without ``DAGs``, which are all of them; and the plugins.
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
    "Plugins",  # the role Viewer may not: the UI shows it no plugin's tab
)


class Person(NamedTuple):
    """A user of Airflow.

    :param dag_id: The only Dag that they may see; all, and whatever else there is, if None.
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


def invite(airflow: RealAirflow) -> None:
    """Make the three and their roles, in an Airflow whose database is made."""
    airflow.run("dags", "reserialize")  # with a Dag comes its ``DAG:...`` that rights can be given on
    rights = [
        {"name": person.role, "resource": resource, "action": "can_read"}
        for person in (VIEWER, STRANGER)
        for resource in (*READABLE, f"DAG:{person.dag_id}")
    ]
    roles = airflow.home / "roles.json"
    roles.write_text(json.dumps(rights))
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
