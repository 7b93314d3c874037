"""Development tools: a demo, Airflow's UI with the example Dags, benchmarks, and screenshots."""
