"""Promises about a busy Airflow, tested in one. Only ``make proof`` runs them, because they take minutes."""
