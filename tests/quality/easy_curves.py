"""Heartbeats drawn as pixel counts, without images: good ones, and ones spoilt as failing networks spoil them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnunet_qa.quality.curves import SCHEMES, Acquisition

SPACING = (10.0, 1.8, 1.8)
_VOXEL = 10 * 1.8 * 1.8 / 1000  # mL
ERRORS = ("jumps", "noise", "flat", "gap", "half")


def beat(frames: int, rng: np.random.Generator) -> np.ndarray:
    """From 0 at end diastole to 1 at end systole and back, with a plateau before the atria contract."""
    time = np.arange(frames) / frames
    systole, filled, kick = rng.uniform(0.3, 0.4), rng.uniform(0.55, 0.65), rng.uniform(0.1, 0.25)
    return np.interp(time, (0, 0.05, systole, filled, 0.85, 0.97, 1), (0, 0.02, 1, 1.2 * kick, kick, 0, 0))


def heart(
    name: str, rng: np.random.Generator, *, error: str = "", frames: int = 50, slices: int = 10, subject: str = ""
) -> Acquisition:
    """A short-axis series; `error` is one of `ERRORS`, which spoils some of its structures."""
    volume, ejected, shape = rng.uniform(90, 220), rng.uniform(0.35, 0.7), beat(frames, rng)
    stroke = volume * ejected
    volumes = {
        "lv": volume - stroke * shape,
        "myocardium": np.full(frames, rng.uniform(80, 170)),
        "rv": volume * rng.uniform(0.95, 1.2) - stroke * rng.uniform(0.97, 1.03) * shape,
    }
    profile = np.sin(np.linspace(0.5, 2.9, slices))
    pixels = {}
    for structure, curve in volumes.items():
        wobble = 1 + rng.normal(0, 0.012, frames)
        pixels[structure] = np.rint(np.outer(curve * wobble, profile / profile.sum()) / _VOXEL).astype(np.int64)
    if error:
        for structure in rng.permutation(list(pixels))[: rng.integers(1, 4)]:
            pixels[structure] = spoilt(pixels[structure], error, rng)
    return acquisition(pixels, name=name, subject=subject)


def spoilt(pixels: np.ndarray, error: str, rng: np.random.Generator) -> np.ndarray:
    """Pixel counts `(frames, slices)` with an error."""
    frames, slices = pixels.shape
    spoiling = np.ones((frames, slices))
    if error == "jumps":  # single frames fail
        some = rng.choice(frames, rng.integers(1, 5), replace=False)
        spoiling[some] = rng.uniform(0, 0.6, (len(some), 1))
    elif error == "noise":
        spoiling *= 1 + rng.normal(0, rng.uniform(0.06, 0.15), (frames, 1))
    elif error == "flat":  # the heart hardly moves
        rest = rng.uniform(0.05, 0.25)
        mean = pixels.mean(axis=0, keepdims=True)
        return np.rint(mean + rest * (pixels - mean)).astype(np.int64)
    elif error == "gap":  # slices in the middle are lost for a part of the cycle
        start, first = rng.integers(frames), rng.integers(2, slices - 3)
        some = (start + np.arange(rng.integers(3, frames // 2))) % frames
        spoiling[some[:, None], np.arange(first, first + rng.integers(1, 3))] = 0
    elif error == "half":  # lost in part of the cycle
        spoiling[rng.integers(5, frames // 2) : rng.integers(frames // 2, frames)] = rng.uniform(0, 0.7)
    return np.rint(np.maximum(pixels * spoiling, 0)).astype(np.int64)


def acquisition(
    pixels: Mapping[str, np.ndarray], *, name: str = "a", subject: str = "", scheme: str = "ukbb"
) -> Acquisition:
    """Pixel counts as an acquisition."""
    return Acquisition(
        acquisition_id=name, subject_id=subject or name, pixels=dict(pixels), spacing=SPACING, scheme=SCHEMES[scheme]
    )


def hearts(
    number: int, *, seed: int = 0, share: float = 0.4, frames: int = 50, prefix: str = "s"
) -> tuple[list[Acquisition], np.ndarray]:
    """So many subjects of one series each, and which series have an error: the first `share` of them."""
    rng = np.random.default_rng(seed)
    erroneous = np.arange(number) < round(share * number)
    made = [
        heart(f"{prefix}{k}", rng, error=ERRORS[k % len(ERRORS)] if wrong else "", frames=frames)
        for k, wrong in enumerate(erroneous)
    ]
    return made, erroneous
