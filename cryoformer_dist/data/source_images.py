"""Images as an ideal microscope would have recorded them: what their source has done to them since is undone.

Flipped phases and a multiplication by the CTF act on noise as on signal. Undone, images are ``CTF * projection +
noise`` again, with noise that no particle's CTF has coloured, and nobody else needs to know. Odd aberrations (beam
tilt, trefoil) turn phases by known angles, and are turned back; white noise stays white under that.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.io.particles import OpticsGroup, ParticleTable
from cryoformer_dist.physics.aberrations import odd_phase
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid

# Where the CTF is weaker, what multiplied images have lost to it is not blown up: it would be the errors of cutting a
# box, and the signal has a 2500th of its power there. At the lowest frequencies, of a tenth, 4 % of amplitude are lost.
_WEAKEST_TRANSFER = 0.02


def as_recorded(images: Float[Tensor, "images box box"], table: ParticleTable) -> Float[Tensor, "images box box"]:
    """Source images of one optics group before anybody corrected them, with the phases of their projections.

    Parameters
    ----------
    images
        As the source has them, at its box.
    table
        Their rows.
    """
    group = table.optics[int(table.optics_group[0])]
    imaging, box = group.imaging, images.shape[-1]
    if imaging.correction == "none" and not imaging.odd_zernike:
        return images
    found = image_to_fourier(images)
    if imaging.correction != "none":
        found = found * _undoing(table, box, group)
    if imaging.odd_zernike:
        phase = odd_phase(imaging.odd_zernike, frequency_grid(box) / group.pixel_size_angstrom)
        found = found * torch.polar(torch.ones_like(phase), -phase).to(found.dtype)
    return fourier_to_image(found, box)


def _undoing(table: ParticleTable, box: int, group: OpticsGroup) -> Float[Tensor, "images box half"]:
    """What takes a correction back."""
    pixel = torch.full((len(table),), group.pixel_size_angstrom)
    transfer = transfer_at(table.ctf_params(), frequency_grid(box), pixel)
    if group.imaging.correction == "phases flipped":
        return torch.where(transfer < 0, -1.0, 1.0)
    undo: Tensor = transfer / (transfer.square() + _WEAKEST_TRANSFER**2)
    return undo


def describe_corrections(optics: Sequence[OpticsGroup]) -> list[str]:
    """What is undone, and in how many optics groups; a line each."""
    found = Counter(str(group.imaging.correction) for group in optics if group.imaging.correction != "none")
    odd = Counter("odd aberrations (beam tilt, trefoil)" for group in optics if group.imaging.odd_zernike)
    return [f"{what} in {count} of {len(optics)} optics groups" for what, count in sorted((found + odd).items())]
