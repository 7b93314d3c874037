"""Shared by tests and development tools: a real Airflow, PostgreSQL, other servers, and a proxy."""
