"""What Ray and its processes read from the environment; to be set before Ray is imported."""

import os
import secrets

_QUIET_AND_SAFE = {
    "RAY_AUTH_MODE": "token",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Without it the dashboard's Train tab stays empty.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    # Threads that spin while they wait slow a busy machine down tenfold.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def prepare_environment() -> None:
    """Set what the user has not set: quiet Ray, passive threads, a token only this cluster's processes know."""
    for name, value in _QUIET_AND_SAFE.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
