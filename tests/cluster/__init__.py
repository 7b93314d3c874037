"""Promises about an Airflow on many machines. Only ``make test-cluster`` runs them.

``cluster`` runs each part of Airflow as a machine of its own. ``machine`` gives each its name. The machines
share the folder ``dags`` and the network. ``conftest`` runs the scenario whose result the tests check.
"""
