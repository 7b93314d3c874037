"""What users see, in a real browser on a real Airflow. Only ``make test-browser`` runs these tests.

``people`` holds the users and their permissions, ``visits`` opens pages as one of them.
"""
