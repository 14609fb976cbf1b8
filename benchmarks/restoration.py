"""Cost of the distortions of restoration pretraining: `python -m benchmarks.restoration`.

First, 10,000 blocks of a 64×64×32 patch shuffled by `shuffle_pixels` and by a plain loop over blocks, in turn in one
run; the target is a ratio of at least 10. Then all distortions of a patch against a training step of a network on one
patch, one thread each, as they run side by side on two cores; below 1 the network is what takes the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_qa.config_limited_data import DistortionConfig, RestorationConfig
from nnunet_qa.pretext.shuffle import draw_blocks, shuffle_pixels
from nnunet_qa.pretext.transform import distorted_pair

ROUNDS = 7
PATCHES = {2: (256, 256), 3: (64, 64, 32)}
STAGES = 5


def main() -> None:
    """Print both ratios."""
    torch.set_num_threads(1)
    rng, settings = np.random.default_rng(0), DistortionConfig()
    image = rng.random((1, *PATCHES[3]), dtype=np.float32)
    shuffle_pixels(image, rng, settings)  # numba compiles, or reads what it has compiled
    pairs = [
        (_seconds(lambda: plain_loop(image, rng, settings)), _seconds(lambda: shuffle_pixels(image, rng, settings)))
        for _ in range(ROUNDS)
    ]
    plain, ours = np.median(pairs, axis=0)
    ratios = [loop / fast for loop, fast in pairs]
    print(
        f"shuffle: plain loop {plain * 1e3:.1f} ms, ours {ours * 1e3:.2f} ms, paired ratio {np.median(ratios):.1f}, "
        f"least {min(ratios):.1f} over {ROUNDS} rounds (target >= 10)"
    )
    for dimensions, patch in PATCHES.items():
        image = rng.normal(size=(1, *patch)).astype(np.float32)
        step = _step(dimensions, torch.from_numpy(image)[None])
        step()
        distorting = [_seconds(lambda image=image: distorted_pair(image, rng, RestorationConfig())) for _ in range(40)]
        stepping = [_seconds(step) for _ in range(ROUNDS)]
        print(
            f"{'×'.join(map(str, patch))}: distortions {np.mean(distorting) * 1e3:.1f} ms a patch (at most "
            f"{max(distorting) * 1e3:.1f}), a step of the network {np.median(stepping) * 1e3:.0f} ms a patch, ratio "
            f"{np.mean(distorting) / np.median(stepping):.3f} (target < 1)"
        )


def plain_loop(image: np.ndarray, rng: np.random.Generator, settings: DistortionConfig) -> np.ndarray:
    """The same with a plain Python loop over the blocks and numpy inside it."""
    result = image.copy()
    for start, side in zip(*draw_blocks(image.shape[1:], settings.blocks, rng), strict=True):
        block = (slice(None), *(slice(first, first + n) for first, n in zip(start, side, strict=True)))
        values = image[block].reshape(len(image), -1)
        result[block] = values[:, rng.permutation(values.shape[1])].reshape(result[block].shape)
    return result


def _step(dimensions: int, data: torch.Tensor) -> Callable[[], None]:
    """A training step of nnU-Net's plain U-Net with its usual widths."""
    convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
    network = PlainConvUNet(
        1,
        STAGES,
        [32 * 2**stage for stage in range(STAGES)],
        convolution,
        3,
        [1, *[2] * (STAGES - 1)],
        2,
        1,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
    )
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.l1_loss(network(data), data).backward()
        optimizer.step()

    return step


def _seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
