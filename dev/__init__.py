"""What developers run: benches."""
