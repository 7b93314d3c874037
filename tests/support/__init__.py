"""What tests and development share: a real Airflow, PostgreSQL, servers."""
