"""From a checkpoint back to biology: volumes, latents, verdicts, the report."""
