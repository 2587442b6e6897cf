"""The run directory: every file's name, and who reads and writes it."""
