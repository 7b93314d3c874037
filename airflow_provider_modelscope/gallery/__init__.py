"""The images of Dags and Dag runs in Airflow's own UI, from Airflow 3.1 on.

===============  =======================================================================
``plugin``       what Airflow loads: three tabs, and the app that serves their pages
``app``          the routes, each behind Airflow's own authorization
``metadata``     reads a run's XComs and task states from Airflow's database
``run``          what is known of a run, as values
``cards``        decides what is shown of it
``status``       decides what is said of an image that is not stored
``batches``      decides what is shown of a batch
``batch_state``  reads the state of a batch from object storage
``dag_metadata`` reads the images of all runs of a Dag from Airflow's database
``dag_images``   decides what is shown of them: a page, the newest first, or what a search finds
``files``        reads images from object storage and makes thumbnails
``page.*``       the page: HTML, CSS and JavaScript
===============  =======================================================================

Airflow loads the plugin into all of its processes, so the other modules are imported on the first request.
"""
