"""ModelScope's API as pure functions and values: no Airflow, no HTTP client, no clock."""
