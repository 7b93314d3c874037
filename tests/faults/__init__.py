"""Promises about failures, tested in a real Airflow. Only ``make test-faults`` runs them.

``rows`` holds the faults, one row each. ``system`` runs Airflow, and a service and a store for each row.
``leaks`` searches everything that was written for the token.
"""
