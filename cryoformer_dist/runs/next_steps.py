"""What to do with a finished run: what looks suspicious, whom to hand the particles to, how to look further."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoformer_dist.runs.layout import FLEXIBILITY_SCRIPT, REFINED_POSES, SERIES_MAPS, VOLUMES
from cryoformer_dist.runs.training_log import SearchFindings

MUCH_JUNK = 0.2
"""Share of images of no particle from which on they are to be looked at first."""
_WRITTEN_AS = {".star": ("RELION", ".star"), ".cs": ("cryoSPARC", ".cs")}


@dataclass(frozen=True, slots=True)
class NextStep:
    """Something to do, and the command that does it; empty where none does."""

    text: str
    command: str = ""


def find_suspicions(advice: Sequence[str], search: SearchFindings | None) -> list[NextStep]:
    """What should be looked at before maps are believed.

    Parameters
    ----------
    advice
        What else than conformation explains the latents, in words.
    search
        What the last search found of all particles.
    """
    found = [NextStep(f"Something else than shape sorts the particles: {words}.") for words in advice]
    if search is not None and search.junk_share is not None and search.junk_share > MUCH_JUNK:
        found.append(
            NextStep(
                f"{search.junk_share:.0%} of the images seem to show no particle: look at some of them, leave them out "
                "and train again (in this folder)",
                "cryoformer-dist select . --where 'junk < .5' --name without_junk",
            )
        )
    if search is not None and search.latent_information_nats is not None and search.latent_information_nats < 0.1:
        found.append(
            NextStep(
                "Images hardly tell conformations apart: convert with a smaller box for less noise, or take more "
                "particles; do not read motion into these maps"
            )
        )
    return found


def suggest_handing_on(latent: Mapping[str, np.ndarray], source_suffix: str) -> list[NextStep]:
    """The commands that hand the particles of the largest cluster on, and all but junk.

    Parameters
    ----------
    latent
        Arrays of latent.npz.
    source_suffix
        Of the particle file: selections are written as particles came.
    """
    if "kmeans_label" not in latent:
        return []
    program, suffix = _WRITTEN_AS.get(source_suffix, ("cryoDRGN", ".pkl"))
    counts = np.bincount(latent["kmeans_label"])
    largest = int(counts.argmax())
    whole = " --where 'junk < .5'" if "weight" in latent else ""
    steps = [
        NextStep(
            f"Hand one group on to {program}, here the largest, {largest} with {counts[largest]:,} particles; another "
            "number takes another (in this folder)",
            f"cryoformer-dist select . --cluster {largest}{whole} -o group_{largest}{suffix}",
        )
    ]
    if whole:
        steps.append(
            NextStep(
                f"Hand all on but images of no particle, to refine again in {program}",
                f"cryoformer-dist select .{whole} -o good{suffix}",
            )
        )
    return steps


def suggest_looking(run: Path, levels: Mapping[str, float]) -> list[NextStep]:
    """Commands that open results elsewhere, of those that are there.

    Parameters
    ----------
    run
        Run directory.
    levels
        Contour level of each series of maps.
    """
    steps = []
    for name, text in (("pc1", "Play the motion along the first axis"), ("state", "Play the evaluated states")):
        if name in levels:
            play = f"open {VOLUMES}/{name}_*.mrc vseries true; volume #1 level {levels[name]:.4g}; "
            play += "vseries play #1 direction oscillate"
            steps.append(NextStep(f"{text} in ChimeraX (in this folder)", f"chimerax --cmd '{play}'"))
    if (run / FLEXIBILITY_SCRIPT).is_file():
        steps.append(NextStep("Colour the mean map by flexibility", f"chimerax {FLEXIBILITY_SCRIPT}"))
    if any((run / VOLUMES).glob(SERIES_MAPS.format(series="kmeans"))):
        steps.append(NextStep("Open the maps of the groups side by side", f"chimerax {VOLUMES}/kmeans_*.mrc"))
    poses = REFINED_POSES.format(suffix=".star")
    if (run / poses).is_file():
        command = f"relion_reconstruct --i {poses} --o refined.mrc --ctf"
        steps.append(NextStep("Back-project with the refined poses in RELION", command))
    return steps
