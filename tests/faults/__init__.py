"""What is promised where something breaks, tried in a real Airflow: only ``make test-faults`` runs it.

``rows`` holds the faults, one row each; ``stage`` the Airflow, services and stores they happen to;
``proxy`` what can go wrong on the wire; ``leaks`` the search for the token that follows.
"""
