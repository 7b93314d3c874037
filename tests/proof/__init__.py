"""What is promised of a busy Airflow, proven in one: minutes, so that only ``make proof`` runs it."""
