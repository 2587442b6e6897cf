"""Scripts that show a series of maps in ChimeraX; it runs a script in its own folder, so paths hold anywhere."""

from collections.abc import Sequence

from cryoformer_dist.figures.surfaces import CLUSTER_COLOURS, VALUE_STOPS

_FRAMES_PER_SECOND = 6
# More maps side by side than this are too small to look at.
_SIDE_BY_SIDE = 16


def compose_palette(low: float, high: float) -> str:
    """Colours of a map's values between two limits, as ``color sample`` takes them."""
    # A map without any spread still needs a palette whose values rise.
    step = max(high - low, 1e-6) / (len(VALUE_STOPS) - 1)
    return ":".join(f"{low + number * step:.4g},{colour}" for number, colour in enumerate(VALUE_STOPS))


def compose_series_script(script: str, maps: Sequence[tuple[str, str]], level: float, ordered: bool) -> str:
    """Commands that play maps that follow one another, or show unordered ones side by side, all at one level.

    Parameters
    ----------
    script
        Its own name.
    maps
        File beside the script, and what it shows.
    level
        Contour of all of them.
    ordered
        Whether each leads to the next.
    """
    lines = [f"# Open in an empty session: chimerax {script}"]
    lines += [f"# {file}: {what}" for file, what in maps]
    files = [file for file, _ in maps]
    if ordered and len(files) > 1:
        lines += [
            f"open {' '.join(files)} vseries true",
            f"volume #1 style surface step 1 level {level:.5g} color {VALUE_STOPS[0]}",
            f"vseries play #1 direction oscillate loop true maxFrameRate {_FRAMES_PER_SECOND}",
        ]
    else:
        for number, file in enumerate(files, start=1):
            colour = CLUSTER_COLOURS[(number - 1) % len(CLUSTER_COLOURS)]
            lines += [
                f"open {file} id {number}",
                f"volume #{number} style surface step 1 level {level:.5g} color {colour}",
            ]
        if 1 < len(files) <= _SIDE_BY_SIDE:
            lines.append("tile")
        elif len(files) > 1:
            lines.append(f"hide #2-{len(files)} models")
    return "\n".join([*lines, "lighting soft", "view", ""])


def compose_resolution_script(
    script: str, maps: Sequence[tuple[str, str]], level: float, limits_angstrom: tuple[float, float]
) -> str:
    """Commands that show maps side by side at one level, coloured by their local resolution.

    Parameters
    ----------
    script
        Its own name.
    maps
        Of each: its file, and that of its resolutions.
    level
        Contour of all of them.
    limits_angstrom
        Finest and coarsest resolution that have a colour of their own.
    """
    lines = [f"# Coloured by local resolution. Open in an empty session: chimerax {script}"]
    for number, (file, resolution) in enumerate(maps, start=1):
        # Maps come first, so that they alone are tiled.
        beside = len(maps) + number
        lines += [
            f"open {file} id {number}",
            f"open {resolution} id {beside}",
            f"hide #{beside} models",
            f"volume #{number} style surface step 1 level {level:.5g}",
            f"color sample #{number} map #{beside} palette {compose_palette(*limits_angstrom)} key true",
        ]
    lines += ["tile"] if len(maps) > 1 else []
    return "\n".join([*lines, "lighting soft", "view", ""])
