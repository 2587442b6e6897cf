"""Commands, and what the terminal shows."""
