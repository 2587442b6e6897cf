"""Images as the microscope recorded them: what their source has done to them since is undone.

Flipped phases and a multiplication by the CTF act on noise as on signal. Undone, images are ``CTF * projection +
noise`` again, with noise that no particle's CTF has coloured, and nobody else needs to know.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cryoformer_dist.io.particles import OpticsGroup, ParticleTable
from cryoformer_dist.physics.ctf import transfer_at
from cryoformer_dist.physics.fourier import fourier_to_image, image_to_fourier
from cryoformer_dist.physics.grids import frequency_grid

# Where the CTF is weaker, what multiplied images have lost to it is not blown up: it would be the errors of cutting a
# box, and the signal has a 2500th of its power there. At the lowest frequencies, of a tenth, 4 % of amplitude are lost.
_WEAKEST_TRANSFER = 0.02


def as_recorded(images: Float[Tensor, "images box box"], table: ParticleTable) -> Float[Tensor, "images box box"]:
    """Source images of one optics group before anybody corrected them.

    Parameters
    ----------
    images
        As the source has them, at its box.
    table
        Their rows.
    """
    group = table.optics[int(table.optics_group[0])]
    if group.imaging.correction == "none":
        return images
    box = images.shape[-1]
    pixel = torch.full((len(images),), group.pixel_size_angstrom)
    transfer = transfer_at(table.ctf_params(), frequency_grid(box), pixel)
    if group.imaging.correction == "phases flipped":
        undo = torch.where(transfer < 0, -1.0, 1.0)
    else:
        undo = transfer / (transfer.square() + _WEAKEST_TRANSFER**2)
    return fourier_to_image(image_to_fourier(images) * undo, box)


def describe_corrections(optics: Sequence[OpticsGroup]) -> list[str]:
    """What is undone, and in how many optics groups; a line each."""
    found = Counter(group.imaging.correction for group in optics if group.imaging.correction != "none")
    return [f"{what} in {count} of {len(optics)} optics groups" for what, count in sorted(found.items())]
