"""Cost of QAPredictor against nnUNetPredictor: `python -m benchmarks.predictor`.

Time: both predict the same preprocessed images in turn in one process. Peak memory: each predicts the same cases in a
process of its own, from files to files; the peak is that of the process that computes. Targets: time at most 1.10
times, peak memory at most 1.25 times.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from benchmarks.model import prepare, write_model
from nnunet_qa.data.images import write_image
from nnunet_qa.inference.predictor import QAPredictor

KINDS = {"nnUNetPredictor": nnUNetPredictor, "QAPredictor": QAPredictor}
SHAPES = {2: (512, 512), 3: (64, 128, 128)}
ROUNDS = 6


def loaded(name: str, model: Path) -> nnUNetPredictor:
    """A predictor of one of the two kinds with the model's weights."""
    predictor = KINDS[name](device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(os.fspath(model), (0,))
    return predictor


def time_ratio(model: Path, dimensions: int) -> tuple[float, float, float]:
    """Median processor seconds of both and the median of the paired quotients (other work counts less)."""
    predictors = [loaded(name, model) for name in KINDS]
    patch = predictors[0].configuration_manager.patch_size
    shape = (1, 4, *(3 * size // 2 for size in patch)) if dimensions == 2 else (1, *(3 * size // 2 for size in patch))
    data = torch.randn(shape)
    times = np.empty((ROUNDS, 2))
    for number in range(-1, ROUNDS):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            predictors[which].predict_logits_from_preprocessed_data(data)
            if number >= 0:
                times[number, which] = time.process_time() - start
    return (*np.median(times, axis=0), float(np.median(times[:, 1] / times[:, 0])))


def peak_memory(name: str, model: Path, images: Path, output: Path) -> float:
    """Peak resident memory in MiB of a process that predicts a folder."""
    command = [sys.executable, "-m", "benchmarks.predictor", name, str(model), str(images), str(output)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak"])


def _child(name: str, model: str, images: str, output: str) -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = loaded(name, Path(model))
        predictor.use_mirroring = False
        predictor.tile_step_size = 1.0  # time does not count here
        predictor.predict_from_files(images, output, num_processes_preprocessing=1, num_processes_segmentation_export=1)
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    """Print both ratios, 2D and 3D."""
    torch.set_num_threads(1)
    for dimensions, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with contextlib.redirect_stdout(io.StringIO()):
                dataset, configuration = prepare(folder, dimensions=dimensions, width=32 if dimensions == 2 else 16)
                model = write_model(folder / "nnUNet_results", dataset, configuration)
                stock, ours, ratio = time_ratio(model, dimensions)
            print(f"{dimensions}D time: {stock:.2f} s, {ours:.2f} s, paired ratio {ratio:.3f} (target <= 1.10)")
            images = folder / "images"
            ending = ".png" if dimensions == 2 else ".nii.gz"
            rng = np.random.default_rng(0)
            for number in range(4 if dimensions == 2 else 2):
                array = rng.integers(0, 255, shape).astype(np.uint8 if dimensions == 2 else np.float32)
                write_image(images / f"case{number}_0000{ending}", array)
            peaks = [peak_memory(kind, model, images, folder / kind) for kind in KINDS]
            print(
                f"{dimensions}D peak memory, images {shape}: {peaks[0]:.0f} MiB, {peaks[1]:.0f} MiB, "
                f"ratio {peaks[1] / peaks[0]:.3f} (target <= 1.25)"
            )


if __name__ == "__main__":
    _child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
