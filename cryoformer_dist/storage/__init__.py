"""Places outside the program: folders and object stores, and what to do while they are full or away."""
