"""Whether half-sets are independent: no image twice, none in both, and both there."""

import warnings
from dataclasses import replace

import numpy as np

from cryoformer_dist.errors import CryoFormerWarning, ParticleFormatError
from cryoformer_dist.io.particles import ParticleTable

_SHOWN = 3


def settle_half_sets(table: ParticleTable, allow_duplicates: bool, seed: int) -> ParticleTable:
    """Refuse what would make half-sets share images, and keep allowed copies of an image in one half.

    Parameters
    ----------
    allow_duplicates
        An image may be listed more than once, at several poses (symmetry expansion). Without half-sets in the source,
        images are then drawn into halves, or copies would be.
    seed
        Of that draw.

    Raises
    ------
    ParticleFormatError
        If an image is listed twice and that is not allowed, or in both half-sets; names rows.

    Warns
    -----
    CryoFormerWarning
        If all particles are in one half-set.
    """
    image = _number_images(table)
    if len(image) and len(np.unique(image)) < len(image):
        _refuse_image_in_both(table, image)
        if not allow_duplicates:
            first, second, count = _first_pairs(image, np.ones(len(image), dtype=bool))
            raise ParticleFormatError(
                f"{table.source}: {count} rows list an image of another row: {_describe(table, first, second)}; "
                "remove the copies, or give --allow-duplicates for symmetry-expanded particles"
            )
        if not table.half_set.any():
            half = np.random.default_rng([seed, 3]).permutation(int(image.max()) + 1) % 2 + 1
            table = replace(table, half_set=half[image].astype(np.int8))
    _warn_of_one_half(table)
    return table


def _number_images(table: ParticleTable) -> np.ndarray:
    """Number ``(N,)`` of the image of each row: rows of one image share it."""
    places = {path: place for place, path in enumerate(table.stack_paths)}
    # A stack may be written in two ways that lead to one file.
    resolved: dict[object, int] = {}
    file = np.asarray([resolved.setdefault(path.resolve(), place) for path, place in places.items()], dtype=np.int64)
    pair = np.stack([file[table.stack], table.stack_index], axis=1)
    _, image = np.unique(pair, axis=0, return_inverse=True)
    return image.reshape(-1)


def _refuse_image_in_both(table: ParticleTable, image: np.ndarray) -> None:
    halves = np.zeros((int(image.max()) + 1, 3), dtype=bool)
    halves[image, table.half_set] = True
    torn = (halves.sum(axis=1) > 1)[image]
    if torn.any():
        first, second, _ = _first_pairs(image, torn)
        raise ParticleFormatError(
            f"{table.source}: {int(torn.sum())} rows list images that are in more than one half-set: "
            f"{_describe(table, first, second)}; the half-sets share images, and their FSC would say nothing: keep all "
            "rows of an image in one half, or list each image once"
        )


def _first_pairs(image: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The first rows that repeat an image of an earlier row, those earlier rows, and how many repeat one."""
    _, first, inverse = np.unique(image, return_index=True, return_inverse=True)
    earlier = first[inverse.reshape(-1)]
    repeats = np.flatnonzero((earlier != np.arange(len(image))) & among)
    return earlier[repeats[:_SHOWN]], repeats[:_SHOWN], len(repeats)


def _describe(table: ParticleTable, first: np.ndarray, second: np.ndarray) -> str:
    pairs = zip(table.source_row[first].tolist(), table.source_row[second].tolist(), second.tolist(), strict=True)
    named = [
        f"particle rows {one + 1} and {two + 1} (image {int(table.stack_index[row]) + 1} of "
        f"{table.stack_paths[table.stack[row]].name})"
        for one, two, row in pairs
    ]
    return ", ".join(named)


def _warn_of_one_half(table: ParticleTable) -> None:
    present = np.unique(table.half_set)
    if len(table) > 1 and len(present) == 1 and present[0] > 0:
        warnings.warn(
            f"{table.source}: all {len(table)} particles are in half-set {int(present[0])}: half-sets cannot be "
            "compared; leave the column out, or give the file of both",
            CryoFormerWarning,
            stacklevel=3,
        )
