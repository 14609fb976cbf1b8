"""Rebuild `2015_BOE_Chiu/Subject_XX.mat` from a folder of PNGs, to run `nnunet-qa convert oct-chiu` on real pixels.

Reads `images/SXX_bscanYY.png` with `fluid_mask/SXX_bscanYY.png` (annotated) and `unlabelled_half_res/SXX_bscanYY.png`
(half the size, enlarged twofold here; the conversion shrinks them again). A B-scan that is in neither folder stays all
zero, which the conversion leaves out with a warning. Only `images` and `manualFluid1` are known, so only these are
written.

    python benchmarks/oct_duke_dme/rebuild_mat.py -i ../shared/data/oct_duke_dme -o /data
    nnunet-qa convert oct-chiu -i /data/2015_BOE_Chiu -d 101 --test-subjects S05,S06
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import typer
from scipy.io import savemat
from skimage.transform import rescale

from nnunet_qa.data.images import check_same_grid, read_picture
from nnunet_qa.dataset_conversion.script import run_script
from nnunet_qa.errors import DatasetError
from nnunet_qa.files import replacing
from nnunet_qa.progress import track

SHAPE = (496, 768)
_NAME = re.compile(r"S(\d+)_bscan(\d+)\.png")


def pictures(folder: Path) -> dict[str, dict[int, Path]]:
    """Files by subject and 0-based B-scan."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        if match := _NAME.fullmatch(path.name):
            found.setdefault(match.group(1), {})[int(match.group(2))] = path
    return found


def rebuild(source: Path, target: Path, *, bscans: int = 61) -> list[Path]:
    """Write one file a subject.

    Raises:
        DatasetError: there are no images, or a B-scan number does not fit.
        ImageError: a picture cannot be read, or its mask is missing or of another shape.
    """
    annotated, halves = pictures(source / "images"), pictures(source / "unlabelled_half_res")
    if not annotated:
        raise DatasetError(f"{source / 'images'}: no SXX_bscanYY.png there")
    written = []
    for subject, files in track(sorted(annotated.items()), "Subjects", total=len(annotated)):
        images = np.zeros((*SHAPE, bscans), dtype=np.uint8)
        fluid = np.full(images.shape, np.nan)
        highest = max({*files, *halves.get(subject, {})})
        if highest >= bscans:
            raise DatasetError(f"S{subject}: has a B-scan {highest}, but volumes have {bscans}; see --bscans")
        for index, path in halves.get(subject, {}).items():
            images[..., index] = _enlarged(read_picture(path))
        for index, path in files.items():
            image, mask = read_picture(path), read_picture(source / "fluid_mask" / path.name)
            check_same_grid(image, mask, str(path))
            images[..., index], fluid[..., index] = image, mask > 0
        path = target / "2015_BOE_Chiu" / f"Subject_{subject}.mat"
        with replacing(path) as temporary:
            savemat(temporary, {"images": images, "manualFluid1": fluid}, do_compression=True)
        written.append(path)
    return written


def _enlarged(image: np.ndarray) -> np.ndarray:
    return np.rint(rescale(image.astype(np.float64), 2, order=1, preserve_range=True)).astype(np.uint8)


def command(
    source: Path = typer.Option(..., "-i", "--input", help="Folder with images, fluid_mask, unlabelled_half_res."),
    target: Path = typer.Option(..., "-o", "--output", help="Where the folder 2015_BOE_Chiu is made."),
    bscans: int = typer.Option(61, "--bscans", help="B-scans of a volume."),
) -> None:
    """Rebuild the .mat files of the Duke DME set from PNGs."""
    for path in rebuild(source, target, bscans=bscans):
        typer.echo(f"Wrote {path}")


if __name__ == "__main__":
    run_script(command)
