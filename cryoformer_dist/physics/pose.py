"""Orientation and in-plane shift of a particle, and the ways other programs write them.

``A`` is RELION's matrix: a voxel ``c = (x, y, z)`` about the centre lands on the image at ``(A c)_xy - shift``; the
shift is what is added to the image to centre it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a molecule stands in its image.

    Attributes
    ----------
    rotation
        ``(*batch, 3, 3)``; left-multiplies column vectors ``(x, y, z)`` of the molecule.
    shift_angstrom
        ``(*batch, 2)``; ``(x, y)`` to add to the image to centre it.
    """

    rotation: Float[Tensor, "*batch 3 3"]
    shift_angstrom: Float[Tensor, "*batch 2"]

    def __getitem__(self, rows: slice | Tensor) -> "Pose":
        return Pose(self.rotation[rows], self.shift_angstrom[rows])

    def to(self, device: torch.device) -> "Pose":
        """The same pose on another device."""
        return Pose(self.rotation.to(device), self.shift_angstrom.to(device))


def join_poses(poses: Sequence[Pose]) -> Pose:
    """Those of several batches, one after the other."""
    rotations, shifts = ([getattr(pose, name) for pose in poses] for name in ("rotation", "shift_angstrom"))
    return Pose(torch.cat(rotations), torch.cat(shifts))


def rotation_from_relion_euler(rot_tilt_psi_deg: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """RELION's Euler angles (ZYZ, degrees) as the matrix ``A``.

    Notes
    -----
    RELION ``Euler_angles2matrix``; with a = rot, b = tilt, g = psi.
    """
    radians = torch.deg2rad(rot_tilt_psi_deg)
    ca, cb, cg = radians.cos().unbind(-1)
    sa, sb, sg = radians.sin().unbind(-1)
    rows = [
        torch.stack([cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb], dim=-1),
        torch.stack([-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb], dim=-1),
        torch.stack([sb * ca, sb * sa, cb], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def relion_euler_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Inverse of `rotation_from_relion_euler`: (rot, tilt, psi) in degrees, tilt in [0, 180].

    At tilt 0 or 180 only rot +- psi is defined; psi carries all of it.
    """
    sin_tilt = (rotation[..., 2, 0].square() + rotation[..., 2, 1].square()).sqrt()
    tilt = torch.atan2(sin_tilt, rotation[..., 2, 2])
    # Below this the single-precision rotation no longer says where the axis points.
    degenerate = sin_tilt < 1e-6
    rot = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 0])
    psi = torch.atan2(rotation[..., 1, 2], -rotation[..., 0, 2])
    psi_alone = torch.atan2(rotation[..., 0, 1], rotation[..., 1, 1])
    rot = torch.where(degenerate, torch.zeros_like(rot), rot)
    psi = torch.where(degenerate, psi_alone, psi)
    return torch.rad2deg(torch.stack([rot, tilt, psi], dim=-1))


def rotation_from_axis_angle(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """CryoSPARC's rotation vector (axis times angle, radians) as ``A = Rodrigues(vector)^T``.

    The zero vector is the identity; the norm may exceed pi.
    """
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*vector.shape[:-1], 3, 3)
    return torch.linalg.matrix_exp(cross).transpose(-1, -2)


def axis_angle_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Inverse of `rotation_from_axis_angle`, with angle in [0, pi]."""
    quaternion = _quaternion_from_matrix(rotation.transpose(-1, -2))
    w, xyz = quaternion[..., 0], quaternion[..., 1:]
    sine = xyz.norm(dim=-1)
    angle = 2.0 * torch.atan2(sine, w)
    scale = torch.where(sine > 1e-9, angle / sine.clamp_min(1e-9), torch.full_like(sine, 2.0))
    return xyz * scale[..., None]


def _quaternion_from_matrix(matrix: Tensor) -> Tensor:
    """Unit quaternion (w, x, y, z), w >= 0: eigenvector of Bar-Itzhack's symmetric matrix, stable at 180 degrees."""
    m = matrix.double()
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    symmetric = m + m.transpose(-1, -2) - trace[..., None, None] * torch.eye(3, dtype=m.dtype, device=m.device)
    axial = torch.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], dim=-1)
    top = torch.cat([trace[..., None], axial], dim=-1)[..., None, :]
    bottom = torch.cat([axial[..., None], symmetric], dim=-1)
    vectors = torch.linalg.eigh(torch.cat([top, bottom], dim=-2)).eigenvectors[..., :, -1]
    sign = torch.where(vectors[..., :1] < 0, -1.0, 1.0)
    return (vectors * sign).to(matrix.dtype)


def rotation_from_6d(six: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Gram-Schmidt of two 3-vectors, the first two rows of the matrix (Zhou et al. 2019)."""
    first = torch.nn.functional.normalize(six[..., :3], dim=-1)
    second = six[..., 3:] - (first * six[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(second, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def sixd_from_rotation(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 6"]:
    """The first two rows: the 6D vector that `rotation_from_6d` maps back to the same rotation."""
    return rotation[..., :2, :].reshape(*rotation.shape[:-2], 6)


def random_rotations(count: int, generator: torch.Generator) -> Float[Tensor, "count 3 3"]:
    """Rotations uniform over SO(3), from normalised Gaussian quaternions."""
    quaternion = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    w, x, y, z = quaternion.unbind(-1)
    entries = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(entries, dim=-1).reshape(count, 3, 3)


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation closest to a matrix in the Frobenius norm (polar factor with determinant +1)."""
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.det(u @ vh)
    u = torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], dim=-1)
    return u @ vh


def squared_frobenius(
    first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, " *batch"]:
    """Squared Frobenius distance of two rotations: 0 when equal, 8 when 180 degrees apart."""
    return (first - second).square().sum((-1, -2))


def rotation_angle_deg(
    first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, " *batch"]:
    """Angle in degrees that turns one rotation into the other."""
    half_sine = (squared_frobenius(first, second) / 8).sqrt().clamp(max=1.0)
    return torch.rad2deg(2 * torch.asin(half_sine))


def turned_in_plane(
    images: Float[Tensor, "particles box box"], rotation: Float[Tensor, "particles 3 3"]
) -> Float[Tensor, "particles box box"]:
    """Images turned about their centre by minus RELION's psi, so that those of one viewing direction look the same.

    Bilinear; what comes from outside the image is zero. For views along the pole rot and psi are one angle: then any.
    """
    box = images.shape[-1]
    # With A = R_z(psi) B the third column of A is (-cos psi sin tilt, sin psi sin tilt, cos tilt).
    psi = torch.atan2(rotation[:, 1, 2], -rotation[:, 0, 2])
    cosine, sine = torch.cos(psi), torch.sin(psi)
    # A pixel u of the turned image shows the image's content at R_z(psi) u.
    turn = torch.stack([torch.stack([cosine, sine], dim=-1), torch.stack([-sine, cosine], dim=-1)], dim=1)
    axis = torch.arange(box, device=images.device) - box // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    source = torch.einsum("bij,hwj->bhwi", turn, torch.stack([x, y], dim=-1).to(images.dtype))
    # The sampler counts from -1 to 1 between the outer edges of the pixels.
    position = (2 * (source + box // 2) + 1) / box - 1
    return torch.nn.functional.grid_sample(images[:, None], position, align_corners=False)[:, 0]
