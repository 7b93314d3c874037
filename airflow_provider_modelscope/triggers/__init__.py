"""The protocol in the triggerer."""
