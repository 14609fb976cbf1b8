"""Cost of a training step of QAsemiTrainer against nnUNetTrainer's: `python -m benchmarks.train_step`.

Both trainers take the same batches in turn in one run; the target is a ratio of at most 1.02.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.model import prepare
from tests.phantom import trainer_of

ROUNDS = 60


def main() -> None:
    """Print the ratio of the medians and of the totals, 2D and 3D."""
    torch.set_num_threads(1)
    for dimensions in (2, 3):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            dataset, configuration = prepare(Path(folder), dimensions=dimensions, width=16)
            trainers = [trainer_of(dataset, configuration, 0, name=name) for name in ("nnUNetTrainer", "QAsemiTrainer")]
            for trainer in trainers:
                trainer.on_train_start()
                trainer.on_train_epoch_start()
            times = _times(trainers)
        medians = np.median(times, axis=0)
        # each round times both on the same batch, so the median of the quotients is free of slow drifts
        paired = np.median(times[:, 1] / times[:, 0])
        print(
            f"{dimensions}D: median step {medians[0] * 1e3:.1f} ms and {medians[1] * 1e3:.1f} ms, "
            f"ratio {medians[1] / medians[0]:.3f}, paired ratio {paired:.3f} over {len(times)} rounds (target <= 1.02)"
        )


def _times(trainers: list) -> np.ndarray:
    times = np.empty((ROUNDS, 2))
    for number in range(-3, ROUNDS):
        batch = next(trainers[0].dataloader_train)
        order = (0, 1) if number % 2 else (1, 0)
        for which in order:
            start = time.perf_counter()
            trainers[which].train_step(batch)
            if number >= 0:
                times[number, which] = time.perf_counter() - start
    return times


if __name__ == "__main__":
    main()
