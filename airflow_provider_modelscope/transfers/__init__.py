"""Store a generation's images."""
