"""A command that checks whether the service still behaves as this provider assumes.

``assumptions`` is the table of what is assumed, ``service`` asks and compares, ``report`` is what it found.
``__main__`` is the command ``python -m airflow_provider_modelscope.check``, ``airflow_command`` makes it
``airflow modelscope check`` for Airflow 3.2 and later, and ``options`` are those of both.
"""
