"""Submit a generation; or submit, wait and store in one task."""
