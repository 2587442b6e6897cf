"""Which particles: what is known of each, the ones chosen by it, and these handed to other programs."""
