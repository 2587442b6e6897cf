"""What a run, a cluster and a simulation file may say."""
