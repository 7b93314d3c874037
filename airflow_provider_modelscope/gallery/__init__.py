"""The images of a Dag run in Airflow's own UI, from Airflow 3.1 on.

==============  ===================================================================
``plugin``      what Airflow loads: two tabs, and where their pages come from
``app``         the routes, each behind Airflow's own authorization
``metadata``    what Airflow's database holds of a run; nothing else reads it
``cards``       what is shown of it
``pictures``    images out of object storage, and small ones of them
``page.*``      how it looks, and what moves on it
==============  ===================================================================

The plugin is loaded into every process of Airflow, so the rest is imported when somebody looks.
"""
