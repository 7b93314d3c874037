"""The same bytes in every store, over the store's own protocol; run by ``make test-stores`` only.

``recipes`` reads the connections in the docs, ``tests.support.servers`` starts a server for each of them,
and ``stores`` combines the two, with a relay in between that injects faults.
"""
