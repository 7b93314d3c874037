"""When to poll again, when to submit again, and when to give up: no Airflow, no network."""
