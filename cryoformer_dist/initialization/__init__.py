"""First estimates from the particles: consensus, occupancy, linear model, poses; no files."""
