"""Image quality against the loop one would write with scikit-image: `python -m benchmarks.image_quality`.

All four metrics by the paper's definition of 1,000 slices of 512 x 512. Processor time is compared, so that a
second core would help neither; the target is a ratio of at most 0.5.
"""

from __future__ import annotations

import time

import numpy as np
from scipy import ndimage
from skimage import filters

from nnunet_qa.quality import image_quality as ours

SLICES = 1000
_DRAWN = 20  # different slices; the rest repeats them, as noise for a thousand takes longer than the benchmark


def main() -> None:
    """Print the ratio for an 8-bit and a CT-like type, and what the time goes to."""
    noise = np.random.default_rng(0).normal(size=(_DRAWN, 512, 512))
    smooth = ndimage.gaussian_filter(noise, (0, 1, 1))
    for kind, scale, shift in ((np.uint8, 100, 128), (np.int16, 800, 0)):
        drawn = np.clip(smooth * scale + shift, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
        stack = np.tile(drawn, (SLICES // _DRAWN, 1, 1))
        roi = np.tile(smooth > 0, (SLICES // _DRAWN, 1, 1))
        start = time.process_time()
        found = ours.image_quality(stack, roi)
        between = time.process_time()
        expected = loop(stack, roi)
        seconds = (between - start, time.process_time() - between)
        for name, values in zip(ours.METRICS, expected, strict=True):
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-9)
        print(
            f"{kind.__name__}: {seconds[0]:.1f} s and {seconds[1]:.1f} s for {SLICES} slices, "
            f"ratio {seconds[0] / seconds[1]:.3f} (target <= 0.5); {parts(drawn, roi[:_DRAWN])}"
        )


def loop(stack: np.ndarray, roi: np.ndarray) -> np.ndarray:
    """The straightforward loop, `(metrics, slices)`."""
    window = np.ones((3, 3))
    rows = []
    for image, inside in zip(stack, roi, strict=True):
        grey = image.astype(np.float64)
        pixels = grey[inside]
        noise = grey - filters.median(image, window)
        rows.append(
            (1 / filters.laplace(grey).var(), noise.var() / grey.max(), pixels.var() / pixels.max(), pixels.mean())
        )
    return np.transpose(rows)


def parts(drawn: np.ndarray, roi: np.ndarray) -> str:
    """Shares of the two medians in the loop's and in our time, and of the other steps in ours, on the drawn slices."""
    paper = ours.Definition.PAPER
    steps = {
        "median": lambda image, inside: ours._median(image, 3),
        "Laplacian and its variance": lambda image, inside: ours._blurriness(image, paper),
        "CoV and mean": lambda image, inside: ours._region(image, inside, paper),
        "all": lambda image, inside: ours.image_quality(image, inside),
        "loop's median": lambda image, inside: filters.median(image[0], np.ones((3, 3))),
        "loop": loop,
    }
    seconds = {}
    for name, step in steps.items():
        start = time.process_time()
        for number in range(len(drawn)):
            step(drawn[number : number + 1], roi[number : number + 1])
        seconds[name] = time.process_time() - start
    shares = ", ".join(f"{name} {seconds[name] / seconds['all']:.0%}" for name in list(steps)[:3])
    slow = seconds["loop's median"] / seconds["loop"]
    return f"of ours {shares}; of the loop median {slow:.0%}"


if __name__ == "__main__":
    main()
