"""Other programs' files; their dialects end here."""
