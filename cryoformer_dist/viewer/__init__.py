"""A trained run in a browser: its latent map, the particles that are chosen there, and the maps of any of them."""
