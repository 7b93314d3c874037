"""The hook: ModelScope from a worker, with the credentials of an Airflow connection."""
