"""What a run, a cluster, a sweep and a simulation file may say."""
