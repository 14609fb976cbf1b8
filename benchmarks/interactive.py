"""Time of a click in InteractivePredictor: `python -m benchmarks.interactive [threads]`.

A slice of 256×256 with a 2D U-Net of nnU-Net's usual widths (32 to 512, 7 stages) whose patch is the slice; and volumes
of 64³, 128³ and 192³ with a 3D U-Net of half these widths (16 to 256, 5 stages) and a patch of 64³, on a grid finer
by a tenth than that of the image, so that predictions are resampled. The weights are random, but all is background, so
that a click changes its patch alone. Targets: at most 0.2 s a click in the slice; the same time and region in each
volume. Seconds of the processor, of all threads together, say it where the machine has other work.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_qa.trainers.interactive import InteractiveTrainer
from tests.inference.interactive_model import dataset_of, plans_of, with_network

CLICKS = 5
FLAT = ([256, 256], [32, 64, 128, 256, 512, 512, 512], [(1, 256, 256)])
SOLID = ([64, 64, 64], [16, 32, 64, 128, 256], [(64,) * 3, (128,) * 3, (192,) * 3])


def main() -> None:
    """Print the seconds of a click, 2D and 3D."""
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    print(f"{torch.get_num_threads()} threads")
    for patch, features, shapes in (FLAT, SOLID):
        for shape in shapes:
            with contextlib.redirect_stdout(io.StringIO()):
                network, clicks, voxels, patches = _measure(patch, features, shape)
            (wall, processor), (alone, _) = np.median(clicks, axis=0), np.median(network, axis=0)
            print(
                f"{'×'.join(map(str, shape))}: a click {wall:.3f} s, of the processor {processor:.3f} s (medians of "
                f"{CLICKS}); the network alone, in float32, {alone:.3f} s; {patches} patches and {voxels} voxels anew"
            )


def _measure(patch: list[int], features: list[int], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Seconds and processor seconds of passes of the network and of clicks, voxels and patches of one."""
    spacing = [1.0 if len(patch) == 2 else 0.9] * len(patch)
    plans, dataset = plans_of(patch, spacing=spacing, features=features), dataset_of()
    manager = PlansManager(plans)
    (configuration,) = plans["configurations"]
    torch.manual_seed(0)
    network = InteractiveTrainer.build_network_architecture(
        manager, manager.get_configuration(configuration), 1, 2, enable_deep_supervision=False
    )
    network.decoder.seg_layers[-1].bias.data[0] = 100.0
    predictor = with_network(network, plans, dataset)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, *shape)).astype(np.float32)
    # the first prediction costs what the image is large, and is not what is measured
    stock = predictor.predictor
    stock.predict_logits_from_preprocessed_data = lambda data: torch.zeros(2, *data.shape[1:], dtype=torch.half)
    predictor.set_image(image, properties={"spacing": [999 if len(patch) == 2 else 1, 1, 1]})
    passes: list[torch.Tensor] = []
    network.register_forward_hook(lambda *given: passes.append(given[0]))
    seconds = np.empty((2, CLICKS + 1, 2))
    x = torch.randn(1, 4, *patch)
    for number in range(CLICKS + 1):  # the first of each is to warm up
        at = [length // 2 + int(rng.integers(-3, 4)) if length > 1 else 0 for length in shape]
        with torch.inference_mode():
            seconds[0, number] = _seconds(lambda: network(x))
        passes.clear()
        seconds[1, number] = _seconds(lambda at=at, label=number % 2: predictor.add_click(at, label))
        predictor.undo()
    region = predictor.last_changed_region
    voxels = int(np.prod([part.stop - part.start for part in region]))
    return seconds[0, 1:], seconds[1, 1:], voxels, len(passes)


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
