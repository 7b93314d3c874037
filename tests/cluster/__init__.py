"""Many machines: only ``make test-cluster`` runs it.

``cluster`` makes each part of Airflow a machine of its own, called as ``machine`` says; ``dags`` is all that
they share but the network; ``conftest`` plays the story that the tests then ask about.
"""
