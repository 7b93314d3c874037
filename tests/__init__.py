"""What the project promises, and the commands that show it."""
