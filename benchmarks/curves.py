"""Extracting curves against only reading the same files: `python -m benchmarks.curves [SUBJECTS]`.

Series of 50 frames of 10 slices of 192 x 208, in files of four axes and in a file a frame. Reading is nibabel's and
SimpleITK's, to arrays. Processor time of one process is compared, all three on one subject before the next, so that a
machine busy with other work slows all alike. The target is at least 0.5 times the speed of reading, and a peak of
memory that does not grow with the number of subjects.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_qa.cases import CaseTable
from nnunet_qa.quality.curve_files import read_acquisitions, write_curves
from nnunet_qa.quality.curves import SCHEMES

FRAMES, SLICES, ROWS, COLUMNS = 50, 10, 192, 208
SUBJECTS = 200
SPACING = (10.0, 1.8, 1.8)


def main(subjects: int) -> None:
    """Print the ratios for both kinds of files, and the peaks of memory for a tenth and for all of the subjects."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for subject in range(subjects):
            write_subject(folder, subject)
        for kind, pattern in (("4D files", "series"), ("a file a frame", "frames")):
            seconds = {"reading with nibabel": 0.0, "reading with SimpleITK": 0.0, "curves": 0.0}
            for subject in range(subjects):
                files = sorted((folder / pattern).glob(f"s{subject:03d}*"))
                table = case_table(files) if pattern == "frames" else None
                steps: dict[str, Callable[[], object]] = {
                    "reading with nibabel": lambda files=files: [read_nibabel(file) for file in files],
                    "reading with SimpleITK": lambda files=files: [read_sitk(file) for file in files],
                    "curves": lambda files=files, table=table: extract(files, table, folder / "out"),
                }
                for step, run in steps.items():
                    start = time.process_time()
                    run()
                    seconds[step] += time.process_time() - start
            curves = seconds.pop("curves")
            ratios = ", ".join(f"{step} {spent:.2f} s: ratio {spent / curves:.2f}" for step, spent in seconds.items())
            print(f"{kind}: curves of {subjects} subjects {curves:.2f} s; {ratios} (target >= 0.5)")
        peaks = [peak(folder / "series", number) for number in (max(1, subjects // 10), subjects)]
        ratio = peaks[1] / peaks[0]
        print(f"peak memory {peaks[0]:.0f} MiB at a tenth of them, {peaks[1]:.0f} MiB at all, ratio {ratio:.3f}")


def write_subject(folder: Path, subject: int) -> None:
    """A beating heart with ragged borders, `series/sNNN.nii.gz` and `frames/sNNN_frNNN.nii.gz`."""
    rng = np.random.default_rng(subject)
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    distance, angle = np.hypot(rows - 96, columns - 110), np.arctan2(rows - 96, columns - 110)
    aside = np.hypot(rows - 90, (columns - 65) * 0.7)
    labels = np.zeros((FRAMES, SLICES, ROWS, COLUMNS), np.uint8)
    for frame, index in np.ndindex(FRAMES, SLICES):
        radius = (28 - 9 * np.sin(np.pi * frame / FRAMES)) * np.sin(0.4 + 2.3 * index / SLICES)
        ragged = distance + 1.5 * np.sin(6 * angle + rng.normal()) + rng.normal(0, 0.7, distance.shape)
        labels[frame, index] = np.select([ragged < radius, ragged < radius + 6, aside < radius + 4], [1, 2, 3])
    for path, array in (
        (folder / "series" / f"s{subject:03d}.nii.gz", labels),
        *((folder / "frames" / f"s{subject:03d}_fr{frame:03d}.nii.gz", labels[frame]) for frame in range(FRAMES)),
    ):
        path.parent.mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(array.T, np.diag([*SPACING[::-1], 1.0]))
        image.header.set_zooms((*SPACING[::-1], 0.02)[: array.ndim])
        image.to_filename(path)


def case_table(files: list[Path]) -> CaseTable:
    """The case table of one subject's frames."""
    names = [file.name.removesuffix(".nii.gz") for file in files]
    return CaseTable.from_rows(
        {"case_id": name, "subject_id": name[:4], "stack_id": name[:4], "frame_index": number, "role": "test"}
        for number, name in enumerate(names)
    )


def read_nibabel(path: Path) -> np.ndarray:
    """An array, nothing else."""
    return np.asarray(nibabel.load(path).dataobj)


def read_sitk(path: Path) -> np.ndarray:
    """An array, nothing else."""
    return sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(path)))


def extract(files: list[Path], table: CaseTable | None, output: Path) -> None:
    """All that `nnunet-qa curves` does with these files."""
    write_curves(output, read_acquisitions(files, scheme=SCHEMES["ukbb"], cases=table, show_progress=False))


def peak(folder: Path, subjects: int) -> float:
    """Peak memory in MiB of a process that extracts so many subjects."""
    command = [sys.executable, "-m", "benchmarks.curves", "child", os.fspath(folder), str(subjects)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def _child(folder: Path, subjects: int) -> None:
    extract(sorted(folder.iterdir())[:subjects], None, folder.parent / "out")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        _child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else SUBJECTS)
