"""What a person sees, in a real browser on a real Airflow: only ``make test-browser`` runs it.

``people`` holds who looks, and what each may see; ``visits`` the pages they look at.
"""
