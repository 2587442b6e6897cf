"""What a trained run's latents show: chosen states as maps, the landscape they lie in, ways through it, the motion."""
