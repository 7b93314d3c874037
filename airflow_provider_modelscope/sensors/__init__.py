"""Wait for a generation."""
