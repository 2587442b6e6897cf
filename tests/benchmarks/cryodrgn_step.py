"""Runs in cryoDRGN's environment: builds its VAE with the defaults of ``train_vae`` and takes steps on demand.

    python cryodrgn_step.py BOX WIDTH IMAGES DEVICE

Zhong et al., Nature Methods 18, 176 (2021). GPL: its public functions are called, nothing of it stands here. For every
line on standard input one step, answered by one line of JSON.
"""

import json
import os
import sys

import torch
from cryodrgn.commands.train_vae import train_batch
from cryodrgn.lattice import Lattice
from cryodrgn.models import HetOnlyVAE
from gauges import PeakMemory, sampler

LATENT_DIMENSIONS, LAYERS, LEARNING_RATE = 8, 3, 1e-4


def main() -> None:
    box, width, particles = map(int, sys.argv[1:4])
    device = torch.device(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w")
    # What the program prints must not be taken for an answer.
    os.dup2(2, 1)
    torch.set_num_threads(1)
    memory = PeakMemory(device)
    step = Step(box, width, particles, device)
    sample = sampler(step, device, at_least_seconds=0.1 if device.type == "cuda" else 0.0)
    print(json.dumps({"peak_bytes": memory.read()}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": sample()}), file=answers, flush=True)


class Step:
    """One call of cryoDRGN's ``train_batch`` on random images, mixed precision on a GPU as is its default."""

    def __init__(self, box: int, width: int, particles: int, device: torch.device) -> None:
        # Its transforms are symmetric: one pixel more than the images.
        self._lattice = Lattice(box + 1, extent=0.5, device=device)
        mask = self._lattice.get_circular_mask((box + 1) // 2)
        self._model = HetOnlyVAE(
            self._lattice,
            *(LAYERS, width, LAYERS, width, int(mask.sum()), LATENT_DIMENSIONS),
            encode_mode="resid",
            enc_mask=mask,
            enc_type="gaussian",
            enc_dim=None,
            domain="fourier",
            feat_sigma=0.5,
        ).to(device)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=LEARNING_RATE)
        self._scaler = torch.cuda.amp.GradScaler() if device.type == "cuda" else None
        self._images = torch.randn(particles, box + 1, box + 1, device=device)
        self._rotations = torch.linalg.qr(torch.randn(particles, 3, 3))[0].to(device)
        self._shifts = torch.randn(particles, 2, device=device)
        ctf = [box, 3.0, 15000.0, 15000.0, 0.0, 300.0, 2.7, 0.1, 0.0]
        # Its table without the box: pixel size, defocus U and V, angle, voltage, Cs, contrast, phase shift.
        self._ctf = torch.tensor([ctf[1:]] * particles, device=device)

    def __call__(self) -> None:
        train_batch(
            self._model,
            self._lattice,
            self._images,
            None,
            self._rotations,
            self._shifts,
            self._optimizer,
            1 / LATENT_DIMENSIONS,
            ctf_params=self._ctf,
            use_amp=self._scaler is not None,
            scaler=self._scaler,
        )


if __name__ == "__main__":
    main()
