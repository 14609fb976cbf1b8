"""Peak memory of scoring 100 and 1,000 small cases: `python -m benchmarks.score_memory [COUNT COUNT]`.

It should not grow with the number of cases.
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
from pathlib import Path

import numpy as np
import torch

from benchmarks.model import prepare, write_model
from nnunet_qa.data.images import write_image
from nnunet_qa.inference.score import ScoreOptions, score_folder


def _child(model: str, images: str, output: str) -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        options = ScoreOptions(mirroring=False, processes=1)
        score_folder(Path(model), Path(images), Path(output), options, device=torch.device("cpu"), show_progress=False)
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps({"own": own, "children": children}))


def main(counts: list[int]) -> None:
    """Print the peak of the scoring process and of its largest child for each number of cases."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.redirect_stdout(io.StringIO()):
            dataset, configuration = prepare(folder, dimensions=2, width=4)
            model = write_model(folder / "nnUNet_results", dataset, configuration)
        peaks = []
        for count in counts:
            images = folder / f"images{count}"
            rng = np.random.default_rng(count)
            for number in range(count):
                write_image(images / f"case{number:04d}_0000.png", rng.integers(0, 255, (48, 64)).astype(np.uint8))
            command = [sys.executable, "-m", "benchmarks.score_memory", "child", os.fspath(model), os.fspath(images)]
            done = subprocess.run(
                [*command, os.fspath(folder / f"out{count}")], check=True, capture_output=True, text=True
            )
            peak = json.loads(done.stdout.splitlines()[-1])
            peaks.append(peak["own"])
            print(f"{count} cases: peak RSS {peak['own']:.0f} MiB, largest child process {peak['children']:.0f} MiB")
        print(f"ratio {peaks[-1] / peaks[0]:.3f} (1 = constant)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        _child(*sys.argv[2:])
    else:
        main([int(text) for text in sys.argv[1:]] or [100, 1000])
