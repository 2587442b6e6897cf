"""Every file and folder name of a run directory, and of a sweep's folder, in one place.

One schema version covers the whole run directory; it stands in its manifest (`runs.manifest`).
"""

# What was asked, and what it was asked of.
CONFIG = "config.yaml"
MANIFEST = "manifest.json"
"""Also of each checkpoint: the file that says that a folder is whole; it is written last and removed first."""

# What training starts from; the last six not in every run.
CONSENSUS = "consensus.mrc"
OCCUPANCY = "occupancy.mrc"
SHELL_WEIGHT = "shell_weight.npy"
FIRST_LATENTS = "first_latents.npy"
FIRST_MAPS = "first_maps.npy"
"""The linear model's: the change of the map, on a coarse grid, per unit of each of its latents."""
FIRST_POSES = "first_poses.npz"
POSE_SEARCH = "pose_search.json"
GIVEN_MASK = "mask.mrc"
FOCUS_MASK = "focus_mask.mrc"
"""Copies of the masks that the configuration names, brought to the store's box."""
GIVEN_SELECTION = "selection.json"
"""Copy of the selection that the configuration names."""
PREPARED = (
    CONSENSUS,
    OCCUPANCY,
    SHELL_WEIGHT,
    FIRST_POSES,
    FIRST_MAPS,
    FIRST_LATENTS,
    POSE_SEARCH,
    GIVEN_MASK,
    FOCUS_MASK,
    GIVEN_SELECTION,
)

STAGE_PROGRESS = "stage_progress.json"
"""How far the making of these is, while it goes on."""

STOP_REQUEST = "stop"
"""Empty; training ends when it sees it."""

NOTICES = "notices.txt"
"""What happened to a run that its training log does not tell; not in every run."""

WAITING = "waiting.txt"
"""What the run waits for; there only while it does."""

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

# Results, and what they are made from.
RESULTS = "results.json"
"""Which checkpoint the maps are of; written when all of them are there."""
ENCODED_PARTICLES = "encoded_particles.npz"
REFINED_SHELL_WEIGHT = "refined_shell_weight.npz"
VOLUMES = "volumes"
SERIES_MAP = "{series}_{index:03d}.mrc"
"""One of a series of maps, along an axis, of the clusters or of the states: in ``volumes``, or in ``halves``."""
SERIES_MAPS = "{series}_[0-9][0-9][0-9].mrc"
"""Pattern of all of a series."""
SERIES_SCRIPT = "{series}.cxc"
"""Shows it in ChimeraX; beside its maps, written last."""
LATENTS = "latent.npz"
REFINED_POSES = "poses{suffix}"
SELECTIONS = "selections"
"""Particles that were chosen by what this run found of them."""
SELECTION = "{name}.json"
ANALYSIS = "analysis"
"""What `analyze` found."""
ANALYSIS_SUMMARY = "analysis/analysis.json"
PARTICLE_ANALYSIS = "analysis/particles.npz"
LANDSCAPE = "analysis/landscape.npz"
LANDSCAPE_FIGURE = "analysis/landscape.png"
EMBEDDING_FIGURE = "analysis/umap.png"
SCORES = "metrics.json"
FSC = "fsc"
STATE_FSC = "state_{index:03d}.csv"
STATE_FSCS = "state_[0-9][0-9][0-9].csv"
FLEXIBILITY = "flexibility.json"
FLEXIBILITY_SCRIPT = "flexibility.cxc"
MEAN_MAP = "volumes/mean.mrc"
FLEXIBILITY_MAP = "volumes/flexibility.mrc"
ATTENTION = "attention"
ATTENTION_MAP = "attention/query_{query:02d}.mrc"
ATTENTION_MAPS = "attention/query_*.mrc"
ATTENTION_VARIATION_MAP = "attention/variation.mrc"
REPORT = "report.html"
REPORT_FILES = "report"
REPORT_PICTURE = "report/{name}.png"
REPORT_TABLE = "report/{name}.csv"
"""What the page shows, as pictures for slides and as tables."""
HALVES = "halves"
HALF_MAPS_CURVES = "half_maps.csv"
HALF_MAPS_FIGURE = "half_maps{suffix}"
HALF_MAPS_SCORES = "half_maps.json"

# A sweep's folder, whose trials are run directories with four files more.
SWEEP = "sweep.yaml"
SWEEP_TRIALS = "trials"
SWEEP_PREPARED = "prepared"
SWEEP_TABLE = "report.csv"
SWEEP_SUMMARY = "report.md"
SWEEP_BEST = "best.yaml"
TRIAL = "trial.json"
TRIAL_OUTCOME = "outcome.json"
TRIAL_EPOCHS = "epochs.jsonl"
TRIAL_TAKEOVERS = "takeovers.jsonl"
TRIAL_LOCK = "lock"
