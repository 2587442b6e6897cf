"""Every file and folder name of a run directory, and of a sweep's folder, in one place.

One schema version covers the whole run directory; it stands in its manifest (`runs.manifest`).
"""

# What was asked, and what it was asked of.
CONFIG = "config.yaml"
MANIFEST = "manifest.json"
"""Also of each checkpoint: the file that says that a folder is whole; it is written last and removed first."""

# What training starts from; the last three not in every run.
CONSENSUS = "consensus.mrc"
OCCUPANCY = "occupancy.mrc"
SHELL_WEIGHT = "shell_weight.npy"
FIRST_LATENTS = "first_latents.npy"
FIRST_POSES = "first_poses.npz"
POSE_SEARCH = "pose_search.json"
PREPARED = (CONSENSUS, OCCUPANCY, SHELL_WEIGHT, FIRST_POSES, FIRST_LATENTS, POSE_SEARCH)

# What training leaves.
TRAINING_LOG = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
CHECKPOINT = "step-{step:08d}"
PARTIAL_CHECKPOINT = ".partial-{step:08d}"
CHECKPOINT_ENGINE = "engine"
CHECKPOINT_MODEL = "model.pt"
CHECKPOINT_TABLES = "tables.pt"
CHECKPOINT_OCCUPANCY = "occupancy.pt"
RAY_RECORDS = "ray"
"""Ray's own."""
RAY_POINTER = "pointer.json"
"""What Ray is given in place of a checkpoint: where it lies."""
LAUNCH = "launch"
"""Cluster file, run file and logs of a Slurm job."""

# Results.
VOLUMES = "volumes"
LATENTS = "latent.npz"
REFINED_POSES = "poses{suffix}"
SCORES = "metrics.json"
FSC = "fsc"
FLEXIBILITY = "flexibility.json"
FLEXIBILITY_SCRIPT = "flexibility.cxc"
MEAN_MAP = "volumes/mean.mrc"
FLEXIBILITY_MAP = "volumes/flexibility.mrc"
ATTENTION = "attention"
ATTENTION_MAP = "attention/query_{query:02d}.mrc"
ATTENTION_VARIATION_MAP = "attention/variation.mrc"
REPORT = "report.html"
HALVES = "halves"
HALF_MAPS_CURVES = "half_maps.csv"
HALF_MAPS_SCORES = "half_maps.json"

# A sweep's folder, whose trials are run directories with four files more.
SWEEP = "sweep.yaml"
SWEEP_TRIALS = "trials"
SWEEP_PREPARED = "prepared"
SWEEP_TABLE = "report.csv"
SWEEP_BEST = "best.yaml"
TRIAL = "trial.json"
TRIAL_OUTCOME = "outcome.json"
TRIAL_EPOCHS = "epochs.jsonl"
TRIAL_TAKEOVERS = "takeovers.jsonl"
TRIAL_LOCK = "lock"
