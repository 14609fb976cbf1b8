"""Raw datasets of the real images for the experiments, every case labelled; the arms hide labels themselves.

python -m benchmarks.datasets oct --shared ../shared/data -o /data/nnUNet_raw
python -m benchmarks.datasets covid --shared ../shared/data -o /data/nnUNet_raw
python -m benchmarks.datasets hippocampus --shared ../shared/data -o /data/nnUNet_raw
python -m benchmarks.datasets openkbp --shared ../shared/data -o /data/nnUNet_raw
python -m benchmarks.datasets sunnybrook --shared ../shared/data -o /data/nnUNet_raw
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path

import numpy as np
import typer
from skimage.transform import resize_local_mean

from nnunet_qa.cases import Role
from nnunet_qa.data.cine_files import cycle_of_pair, geometry, pair_names, whole_numbers
from nnunet_qa.data.images import Geometry, check_same_grid, read_picture, read_volume
from nnunet_qa.data.paths import PREPROCESSED
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion.engine import LeftOut
from nnunet_qa.dataset_conversion.oct import LABELS, SIZE, BscanCase, Framing, frame_bscan, parse_size, scale_of
from nnunet_qa.dataset_conversion.script import run_script
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.progress import track

logger = logging.getLogger(__name__)
COVID_SIZE = (128, 128)
SPINE_UP = frozenset({"case11", "case12", "case13", "case14", "case17", "case18"})
"""Volumes stored with the spine at the top, seen by eye; with rows reversed, spine and liver lie as in the others."""
SAME_SUBJECT = {"case12": "case11"}
"""Two series of one patient: smoothed slices correlate with 0.97 there, at most with 0.78 between any other volumes."""
HEAD_AND_NECK = (slice(None), slice(28, 92), slice(32, 96))
"""Slices, rows and columns of the 128³ grid that hold all organs of all patients; most of the rest is air."""
HEAD_AND_NECK_SIZE = 48
HEART_SIZE, HEART_FRAMES = 128, 8
HEART_SPACING = (8.0, 1.25, 1.25)
"""Nominal spacing (z, y, x) of the source's volumes in mm."""
_BSCAN = re.compile(r"(S\d+)_bscan(\d+)")
_LUNG, _INFECTION = (1, 2), 2
_ORGANS = {"brainstem": (1,), "spinal_cord": (2,), "parotids": (3, 4), "mandible": (7,)}  # labels of the source


class Source(str, Enum):
    """Which of the shared sets."""

    OCT = "oct"
    COVID = "covid"
    HIPPOCAMPUS = "hippocampus"
    OPENKBP = "openkbp"
    SUNNYBROOK = "sunnybrook"


def convert_oct(source: Path, output: Path, *, size: tuple[int, int] | None = SIZE, overwrite: bool = False) -> Path:
    """The annotated B-scans, cropped to the retina and shrunk; one class, fluid.

    Args:
        source: folder `oct_duke_dme`.
        output: folder in which `Dataset111_QUOct` is written.
        size: rows and columns of a case; None for native pixels.
        overwrite: delete an earlier conversion first.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: no images, a file name without subject and B-scan, or an earlier conversion with other settings.
        ImageError: a picture cannot be read, its mask has another shape, or no retina is found in it.
    """
    framing = Framing(size=size)
    dataset = RawDataset(
        folder=output / "Dataset111_QUOct",
        channel_names=("OCT",),
        labels=LABELS,
        file_ending=".png",
        settings={"source": str(source.resolve()), **asdict(framing)},
    )
    paths = _files(source / "images", ".png")
    dataset.begin(overwrite=overwrite)
    rows: list[dict[str, object]] = []
    for path in track(paths, "B-scans", total=len(paths)):
        match = _BSCAN.fullmatch(path.stem)
        if match is None:
            raise DatasetError(f"{path}: the name must be SXX_bscanYY.png; rename it or take it away")
        image, fluid = read_picture(path), read_picture(source / "fluid_mask" / path.name) > 0
        case = BscanCase(path.stem, match[1], match[1], int(match[2]), "", Role.LABELLED)
        for found in frame_bscan(case, image, fluid, framing=framing, scale=scale_of(image, path.name)):
            if isinstance(found, LeftOut):
                logger.warning("%s: left out: %s", found.name, found.reason)
                continue
            dataset.write_case(found.case_id, found.role, found.images, found.label)
            rows.append({"case_id": found.case_id, "role": found.role.value, **found.row})
    return _finished(dataset, rows)


def convert_covid(
    source: Path, output: Path, *, size: tuple[int, int] | None = COVID_SIZE, overwrite: bool = False
) -> Path:
    """Slices with lung, everything outside the lungs set to 0, spine down, shrunk; one class, infection.

    Args:
        source: folder `covid19_ct`.
        output: folder in which `Dataset112_QUCovid` is written.
        size: rows and columns of a case; None for native pixels.
        overwrite: delete an earlier conversion first.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: no images, or an earlier conversion with other settings.
        ImageError: a volume cannot be read, or its labels have another shape.
    """
    framing = Framing(crop=False, size=size)
    dataset = RawDataset(
        folder=output / "Dataset112_QUCovid",
        channel_names=("lung window",),  # not "CT": intensities are no HU, each image is normalised by its own
        labels={"background": 0, "infection": 1},
        file_ending=".png",
        settings={"source": str(source.resolve()), "size": size},
    )
    paths = _files(source / "images", ".nii.gz")
    dataset.begin(overwrite=overwrite)
    rows: list[dict[str, object]] = []
    skipped = 0
    for path in track(paths, "Volumes", total=len(paths)):
        stack = path.name.removesuffix(".nii.gz")
        volume, labels = read_volume(path)[0], read_volume(source / "labels" / path.name)[0]
        check_same_grid(volume, labels, path.name)
        if stack in SPINE_UP:
            volume, labels = volume[:, ::-1], labels[:, ::-1]
        for index, (image, mask) in enumerate(zip(volume, labels, strict=True)):
            lung = np.isin(mask, _LUNG)
            if not lung.any():
                skipped += 1
                continue
            row = _row(f"{stack}_slice{index:02d}", SAME_SUBJECT.get(stack, stack), stack, index)
            rows.append(row)
            images, label = [framing.image(image * lung)], framing.mask(mask == _INFECTION)
            dataset.write_case(str(row["case_id"]), Role.LABELLED, images, label)
    logger.warning("%s: %d slices without lung left out", dataset.folder.name, skipped)
    return _finished(dataset, rows)


def convert_hippocampus(source: Path, output: Path, *, number: int | None = None, overwrite: bool = False) -> Path:
    """The volumes as they are, float32; two classes, anterior and posterior hippocampus.

    Args:
        source: folder `hippocampus_mr`.
        output: folder in which `Dataset113_QUHippocampus` is written.
        number: how many, in the order of their names; None for all.
        overwrite: delete an earlier conversion first.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: fewer images than asked for, or an earlier conversion with other settings.
        ImageError: a volume cannot be read, or its labels have another shape.
    """
    dataset = RawDataset(
        folder=output / "Dataset113_QUHippocampus",
        channel_names=("MRI",),
        labels={"background": 0, "anterior": 1, "posterior": 2},
        file_ending=".nii.gz",
        settings={"source": str(source.resolve()), "number": number},
    )
    paths = _files(source / "images", ".nii.gz")
    if number is not None and not 2 <= number <= len(paths):
        raise DatasetError(f"--number {number}: give 2 to {len(paths)}, the volumes in {source / 'images'}")
    dataset.begin(overwrite=overwrite)
    rows: list[dict[str, object]] = []
    for path in track(paths[:number], "Volumes", total=len(paths[:number])):
        case = path.name.removesuffix(".nii.gz")
        image, geometry = read_volume(path)
        label = read_volume(source / "labels" / path.name)[0]
        dataset.write_case(case, Role.LABELLED, [image.astype(np.float32)], label, geometry=geometry)
        rows.append(_row(case, case, "", None))
    return _finished(dataset, rows)


def convert_openkbp(
    source: Path,
    output: Path,
    *,
    size: int = HEAD_AND_NECK_SIZE,
    organs: Sequence[str] = tuple(_ORGANS),
    overwrite: bool = False,
) -> Path:
    """Head and neck in HU, cut out of the volumes and shrunk to a cube; brainstem, spinal cord, parotids, mandible.

    Median voxels of the 20 patients at 48³ (fewest): brainstem 108 (60), spinal cord 106 (66), parotids 224
    (100), mandible 194 (95), that is 83% to 93% of their volume at 128³. Left and right parotid are one class,
    since nnU-Net mirrors what it trains on; oesophagus and larynx, the organs with the fewest voxels, are background.

    Args:
        source: folder `openkbp_head_neck_ct`.
        output: folder in which `Dataset114_OpenKBP` is written.
        size: slices, rows and columns of a case, at most 64.
        organs: the classes; other organs are background.
        overwrite: delete an earlier conversion first.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: no images, a wrong size, an unknown organ, or an earlier conversion with other settings.
        ImageError: a volume cannot be read or is no 128³, or its labels have another shape.
    """
    dataset = RawDataset(
        folder=output / "Dataset114_OpenKBP",
        channel_names=("CT",),
        labels={"background": 0, **{name: value for value, name in enumerate(organs, start=1)}},
        file_ending=".nii.gz",
        settings={"source": str(source.resolve()), "size": size, "organs": list(organs)},
    )
    for name in organs:
        if name not in _ORGANS:
            raise DatasetError(f'--organs "{name}": there is no such organ; choose from {", ".join(_ORGANS)}')
    if not 8 <= size <= 64:
        raise DatasetError(f"--size {size}: give 8 to 64, the voxels of an edge")
    paths = _files(source / "images", ".nii.gz")
    dataset.begin(overwrite=overwrite)
    rows: list[dict[str, object]] = []
    for path in track(paths, "Volumes", total=len(paths)):
        case = path.name.removesuffix(".nii.gz")
        volume, geometry = read_volume(path)
        labels = read_volume(source / "labels" / path.name)[0]
        check_same_grid(volume, labels, path.name)
        if volume.shape != (128, 128, 128):
            raise ImageError(f"{path}: has shape {volume.shape}, not (128, 128, 128)")
        near = labels[HEAD_AND_NECK]
        # the class with the largest share of each voxel, so that organs a few voxels wide keep their volume
        masks = [np.isin(near, _ORGANS[name]) for name in organs]
        shares = [_shrunk(mask, size) for mask in (~np.any(masks, axis=0), *masks)]
        dataset.write_case(
            case,
            Role.LABELLED,
            [_shrunk(volume[HEAD_AND_NECK], size) - 1024],
            np.argmax(shares, axis=0),
            geometry=_head_and_neck_geometry(geometry, size),
        )
        rows.append(_row(case, case, "", None))
    return _finished(dataset, rows)


def convert_sunnybrook(
    source: Path, output: Path, *, size: int = HEART_SIZE, frames: int = HEART_FRAMES, overwrite: bool = False
) -> Path:
    """Heartbeats between the real ED and ES volumes, each frame a case; one class, the left ventricle.

    The frames between ED and ES, and their labels, are warped (`nnunet_qa.data.cine_warp`): for a test only the frames
    with a phase are real. The spacing of the source is not known; `HEART_SPACING` is usual for such images, and with
    1 mm nnU-Net would take the few slices for rows. So volumes in mL are nominal too; ratios such as the ejection
    fraction are not affected.

    Args:
        source: folder `sunnybrook_cardiac_mr`.
        output: folder in which `Dataset115_Sunnybrook` is written.
        size: rows and columns of a case.
        frames: of each heartbeat.
        overwrite: delete an earlier conversion first.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: no images, a wrong size or number of frames, or an earlier conversion with other settings.
        ImageError: a volume cannot be read, or a pair is not whole or does not fit.
    """
    dataset = RawDataset(
        folder=output / "Dataset115_Sunnybrook",
        channel_names=("MRI",),
        labels={"background": 0, "lv": 1},
        file_ending=".nii.gz",
        settings={"source": str(source.resolve()), "size": size, "frames": frames},
    )
    if not 32 <= size <= 256 or frames < 3:
        raise DatasetError(f"--size {size} --frames {frames}: give 32 to 256 pixels of an edge, and 3 frames or more")
    _files(source / "images", ".nii.gz")
    patients = pair_names(source / "images")
    dataset.begin(overwrite=overwrite)
    rows: list[dict[str, object]] = []
    for index, patient in enumerate(track(patients, "Heartbeats", total=len(patients))):
        rng = np.random.default_rng(index)
        folders = (source / "images", source / "labels")
        cine = cycle_of_pair(*folders, patient, frames=frames, spacing=HEART_SPACING, rng=rng)
        shape, (z, y, x) = (*cine.image.shape[:2], size, size), cine.spacing
        small = replace(
            cine,
            image=resize_local_mean(cine.image.astype(np.float64), shape, preserve_range=True).astype(np.float32),
            mask=(resize_local_mean((cine.mask == 1).astype(np.float64), shape) >= 0.5).astype(np.uint8),
            spacing=(z, y * cine.image.shape[2] / size, x * cine.image.shape[3] / size),
        )
        for frame, image in enumerate(whole_numbers(small)):
            row = _row(f"{patient}_fr{frame:03d}", patient, patient, None)
            rows.append({**row, "frame_index": frame, "phase": cine.phase(frame)})
            dataset.write_case(str(row["case_id"]), Role.LABELLED, [image], small.mask[frame], geometry=geometry(small))
    return _finished(dataset, rows)


def _shrunk(volume: np.ndarray, size: int) -> np.ndarray:
    """Mean of the source over each voxel of a cube, float32."""
    return resize_local_mean(volume.astype(np.float64), (size,) * 3, preserve_range=True).astype(np.float32)


def _head_and_neck_geometry(source: Geometry, size: int) -> Geometry:
    """Geometry of the shrunk part: the first voxel's centre lies half a new voxel from the edge of the cut."""
    start = np.array([part.start or 0 for part in reversed(HEAD_AND_NECK)])
    extent = np.array([len(range(128)[part]) for part in reversed(HEAD_AND_NECK)])
    spacing = np.array(source.spacing)
    offset = np.reshape(source.direction, (3, 3)) @ (spacing * (start + (extent / size - 1) / 2))
    return Geometry(
        tuple((spacing * extent / size).tolist()), tuple((source.origin + offset).tolist()), source.direction
    )


def _files(folder: Path, ending: str) -> list[Path]:
    found = sorted(folder.glob(f"*{ending}"))
    if not found:
        raise DatasetError(f"{folder}: no *{ending} there; give the folder of the shared sets with --shared")
    return found


def _row(case: str, subject: str, stack: str, slice_index: int | None) -> dict[str, object]:
    return {
        "case_id": case,
        "subject_id": subject,
        "stack_id": stack,
        "slice_index": slice_index,
        "role": Role.LABELLED.value,
    }


def _finished(dataset: RawDataset, rows: list[dict[str, object]]) -> Path:
    """Finish a dataset; where nnUNet_preprocessed is not set, its folds are thrown away (the arms make their own)."""
    with tempfile.TemporaryDirectory() as spare:
        given = os.environ.get(PREPROCESSED)
        os.environ[PREPROCESSED] = given or spare
        try:
            dataset.finish(rows)
        finally:
            if not given:
                del os.environ[PREPROCESSED]
    return dataset.folder


def command(
    which: Source = typer.Argument(..., help="Which set."),
    shared: Path = typer.Option(Path("../shared/data"), "--shared", help="Folder that holds the real images."),
    output: Path = typer.Option(..., "-o", "--output", help="Folder like nnUNet_raw, where the dataset is made."),
    size: str = typer.Option(
        "",
        "--size",
        help="ROWSxCOLUMNS or native, 80x192 (oct) and 128x128 (covid) by default; an edge for openkbp (48) and "
        "sunnybrook (128).",
    ),
    organs: str = typer.Option(",".join(_ORGANS), "--organs", help="openkbp: classes, with commas between them."),
    number: int = typer.Option(None, "--number", help="hippocampus: take so many volumes; all by default."),
    frames: int = typer.Option(HEART_FRAMES, "--frames", help="sunnybrook: frames of each heartbeat."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Delete an earlier conversion first."),
) -> None:
    """Write a raw nnU-Net dataset of one of the shared sets, every case labelled."""
    if which is Source.OCT:
        chosen = parse_size(size) if size else SIZE
        folder = convert_oct(shared / "oct_duke_dme", output, size=chosen, overwrite=overwrite)
    elif which is Source.COVID:
        chosen = parse_size(size) if size else COVID_SIZE
        folder = convert_covid(shared / "covid19_ct", output, size=chosen, overwrite=overwrite)
    elif which is Source.OPENKBP:
        edge, classes = _edge(size, HEAD_AND_NECK_SIZE), organs.split(",")
        folder = convert_openkbp(
            shared / "openkbp_head_neck_ct", output, size=edge, organs=classes, overwrite=overwrite
        )
    elif which is Source.SUNNYBROOK:
        hearts, edge = shared / "sunnybrook_cardiac_mr", _edge(size, HEART_SIZE)
        folder = convert_sunnybrook(hearts, output, size=edge, frames=frames, overwrite=overwrite)
    else:
        folder = convert_hippocampus(shared / "hippocampus_mr", output, number=number, overwrite=overwrite)
    typer.echo(f"Wrote {folder}")


def _edge(size: str, default: int) -> int:
    if size and not size.isdecimal():
        raise DatasetError(f'--size "{size}" is no whole number; give the voxels of an edge, such as {default}')
    return int(size) if size else default


if __name__ == "__main__":
    run_script(command)
