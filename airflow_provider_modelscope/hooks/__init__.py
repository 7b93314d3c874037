"""The protocol on a worker."""
