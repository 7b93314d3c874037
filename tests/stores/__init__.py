"""The same bytes in every store, over the store's own protocol: only ``make test-stores`` runs it.

``recipes`` reads the connections that the README shows, ``tests.support.servers`` starts a server for each of them,
and ``stores`` brings the two together, with a relay between for what can go wrong on the way.
"""
