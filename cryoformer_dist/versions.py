"""What is installed here."""

from importlib.metadata import PackageNotFoundError, version

# What a run's numbers depend on: kept with the run, and the same on every node.
DECISIVE_PACKAGES = ("cryoformer-dist", "torch", "ray", "deepspeed", "zarr", "numpy")


def installed_version(package: str) -> str | None:
    """Version of a package; ``None`` where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def decisive_versions() -> dict[str, str]:
    """Version of every package that a run's numbers depend on, or ``not installed``."""
    return {package: installed_version(package) or "not installed" for package in DECISIVE_PACKAGES}
