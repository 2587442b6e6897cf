"""What Ray and its processes read from the environment; to be set before Ray is imported."""

import os
import secrets
from pathlib import Path

from cryoformer_dist.errors import ClusterError
from cryoformer_dist.storage.places import replaced

_QUIET_AND_SAFE = {
    "RAY_AUTH_MODE": "token",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Without it the dashboard knows nothing of training runs (`/api/train/v2/runs/v1`).
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    # Threads that spin while they wait slow a busy machine down tenfold.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray's 15 leaves its workers a few per cent of a machine on which anything else runs.
    "RAY_worker_niceness": "0",
}
_OF_WORKERS = ("PYTHONWARNINGS", "OMP_WAIT_POLICY", "RAY_DATA_LOG_LEVEL")


def prepare_environment() -> None:
    """Set what the user has not set: quiet Ray, passive threads, clusters that ask for a token."""
    for name, value in _QUIET_AND_SAFE.items():
        os.environ.setdefault(name, value)


def list_worker_variables() -> dict[str, str]:
    """What processes on nodes that others started are to be told."""
    return {name: os.environ[name] for name in _OF_WORKERS}


def make_token() -> None:
    """Give clusters of our own a token that only this user can read, unless the user has one for all clusters."""
    if _has_token():
        return
    path = find_state_folder() / "ray_token"
    if not path.is_file():
        make_private_folder(path.parent)
        with replaced(path) as beside:
            beside.touch(mode=0o600)
            beside.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def describe_token_place() -> str:
    """Where the token lies that the dashboard asks for, in words; never the token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "in RAY_AUTH_TOKEN"
    return f"in {os.environ.get('RAY_AUTH_TOKEN_PATH') or Path.home() / '.ray' / 'auth_token'}"


def find_state_folder() -> Path:
    """What is kept of this user from one command to the next: below ``XDG_STATE_HOME``, or ``~/.local/state``."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "cryoformer-dist"


def make_private_folder(folder: Path) -> None:
    """Have a folder that only this user gets into."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def find_token(token_file: str | None) -> None:
    """Use the token of a cluster that others started.

    Parameters
    ----------
    token_file
        Where it lies; ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH`` or Ray's own place when ``None``.

    Raises
    ------
    ClusterError
        If there is none.
    """
    if token_file is not None:
        path = Path(token_file).expanduser()
        if not path.is_file():
            raise ClusterError(f"token_file: {path}: no such file; copy the token of the cluster there, mode 600")
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    elif os.environ["RAY_AUTH_MODE"] == "token" and not _has_token():
        raise ClusterError(
            "no authentication token for this cluster: name its token_file, or set RAY_AUTH_TOKEN; for a cluster that "
            "was started without tokens (not advised), set RAY_AUTH_MODE=disabled"
        )


def _has_token() -> bool:
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray" / "auth_token").is_file()
