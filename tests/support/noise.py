"""Noise of any radial spectrum, and its power by shell, made without the product's own code for that."""

from collections.abc import Callable

import numpy as np

Curve = Callable[[np.ndarray], np.ndarray]


def white(shell: np.ndarray) -> np.ndarray:
    """The same at all frequencies."""
    return np.ones_like(shell)


def coloured(shell: np.ndarray) -> np.ndarray:
    """Twenty times stronger in the first shells than at Nyquist of 32 pixels."""
    return 1 + 33 / (1 + (shell / 2.2) ** 2) ** 1.5


def kinked(shell: np.ndarray) -> np.ndarray:
    """High and flat at first, then down in five shells of 32 pixels, as measured for EMPIAR-10076, but 21 times."""
    return np.exp(np.interp(shell, (0, 8.8, 11, 17.7), np.log(21) * np.array([1, 0.782, 0.247, 0])))


def plane(box: int) -> np.ndarray:
    """``(box, box)``: cycles over the box of every coefficient."""
    axis = np.fft.fftfreq(box) * box
    return np.hypot(axis[:, None], axis)


def make_noise(curve: Curve, images: int, box: int, seed: int | list[int] = 0) -> np.ndarray:
    """``(images, box, box)`` float32 of mean power 1."""
    power = curve(plane(box))
    spread = np.random.default_rng(seed).normal(size=(images, box, box))
    return np.fft.ifft2(np.fft.fft2(spread) * np.sqrt(power / power.mean())).real.astype(np.float32)


def cut_noise(curve: Curve, images: int, box: int, wider: int, seed: int = 0) -> np.ndarray:
    """The same cut from fields that are so many times as wide, one box from each: opposite edges do not agree."""
    fields = []
    for start in range(0, images, 200):
        made = make_noise(lambda shell: curve(shell / wider), min(200, images - start), wider * box, [seed, start])
        fields.append(made[:, :box, :box])
    return np.concatenate(fields)


def power_per_shell(images: np.ndarray) -> np.ndarray:
    """Mean power per coefficient in each shell, from the first to the last before Nyquist."""
    box = images.shape[-1]
    power = (np.abs(np.fft.fft2(images.astype(np.float64))) ** 2).mean(0) / box**2
    shell = np.rint(plane(box)).astype(int)
    return np.array([power[shell == each].mean() for each in range(1, box // 2)])
