"""Programs for those who work on the project: a demo, Airflow's UI with examples, benches, screenshots."""
