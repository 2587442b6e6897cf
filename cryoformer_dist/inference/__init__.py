"""What an image says about its particle: its conformation, its amplitude, and by how much its pose is off."""
