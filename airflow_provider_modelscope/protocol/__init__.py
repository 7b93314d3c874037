"""ModelScope's API as pure functions and immutable values: no Airflow, no HTTP client, no clock.

``request``     the parameters of one generation, validated
``account``     service, token and limits
``messages``    the HTTP requests to send, and what each response means
``generation``  what a response reports about one generation
``credit``      the account's credit, and prices
``errors``      what an error of the service means: one table
"""
