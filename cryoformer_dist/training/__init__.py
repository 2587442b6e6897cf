"""The training loop; knows torch and DeepSpeed, nothing of Ray."""
