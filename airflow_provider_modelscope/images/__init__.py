"""Images as bytes: checked, converted, read from and written to object storage."""
