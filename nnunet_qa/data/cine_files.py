"""Cines on disk: NIfTI series as UK Biobank pipelines lay them out, frames as nnU-Net cases, and real ED/ES pairs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.cine_phantom import SHORT_AXIS, STRUCTURES, Cine
from nnunet_qa.data.cine_warp import warped_cycle
from nnunet_qa.data.images import Geometry, read_volume, write_image
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.files import replacing
from nnunet_qa.progress import track

Annotated = Literal["all", "ed_es", "none"]
_SAME_SPACING = 1e-3  # relative: headers round
_LEVELS = 32  # fewer different whole numbers would show as steps
_ACROSS = {SHORT_AXIS: np.array([0.66, 0.74, -0.13]), "ao": np.array([1.0, 0.0, 0.0])}  # along a row, LPS
_ALONG_STACK = {SHORT_AXIS: np.array([0.61, -0.58, -0.54]), "ao": np.array([0.0, 0.0, 1.0])}  # base to apex, LPS


def geometry(cine: Cine) -> Geometry:
    """Position in the patient: short-axis slices run oblique through the chest from base to apex, aortic ones do not.

    Rows go from the patient's right to the left and columns downwards; as in real stacks this makes the axes of a
    short-axis stack left-handed. The middle of the volume is the origin.
    """
    stack = _ALONG_STACK[cine.view] / np.linalg.norm(_ALONG_STACK[cine.view])
    across = _ACROSS[cine.view] - _ACROSS[cine.view] @ stack * stack
    across /= np.linalg.norm(across)
    down = np.cross(across, stack) if cine.view == SHORT_AXIS else np.cross(stack, across)
    direction = np.stack([across, down, stack], axis=1)
    spacing = np.array(cine.spacing[::-1])
    middle = direction @ (spacing * (np.array(cine.image.shape[:0:-1]) - 1) / 2)
    return Geometry(tuple(spacing.tolist()), tuple((-middle).tolist()), tuple(direction.ravel().tolist()))


def whole_numbers(cine: Cine) -> np.ndarray:
    """The image in whole numbers, as scanners store it, int16.

    Raises:
        ImageError: intensities do not fit, or are so close to each other that rounding would show.
    """
    low, high = float(cine.image.min()), float(cine.image.max())
    if not (low >= -32768 and high <= 32767 and high - low >= _LEVELS):
        raise ImageError(f"intensities from {low:g} to {high:g} cannot be stored as 16-bit whole numbers; scale them")
    return np.rint(cine.image).astype(np.int16)


def write_nifti(folder: Path, eid: str, cine: Cine, *, annotated: Annotated = "all") -> list[Path]:
    """Write `<folder>/<eid>/sa.nii.gz` (or `ao.nii.gz`), 4D with the frame time in the fourth spacing, and its labels.

    Args:
        folder: of all subjects.
        eid: identifier of the subject.
        cine: what to write.
        annotated: as `write_labels`.

    Returns:
        The files, the image last.

    Raises:
        ImageError: intensities that cannot be stored.
        StorageError: the disk is full or read-only.
    """
    image = whole_numbers(cine)
    paths = write_labels(folder, eid, cine, annotated=annotated)
    paths.append(folder / eid / f"{cine.view}.nii.gz")
    _write_series(paths[-1], image, cine)
    return paths


def write_labels(folder: Path, eid: str, cine: Cine, *, annotated: Annotated) -> list[Path]:
    """Write the annotations of a subject, `label_sa_ED.nii.gz`, `label_sa_ES.nii.gz` and the 4D `label_sa.nii.gz`.

    Args:
        folder: of all subjects.
        eid: identifier of the subject.
        cine: whose masks are written; an aortic one has `ao` in place of `sa`.
        annotated: "all" for the three files, "ed_es" for the first two, "none" for no file.

    Returns:
        The files.
    """
    paths: list[Path] = []
    if annotated != "none":
        for phase, frame in (("ED", 0), ("ES", cine.end_systole)):
            paths.append(folder / eid / f"label_{cine.view}_{phase}.nii.gz")
            write_image(paths[-1], cine.mask[frame], geometry(cine))
    if annotated == "all":
        paths.append(folder / eid / f"label_{cine.view}.nii.gz")
        _write_series(paths[-1], cine.mask, cine)
    return paths


def _write_series(path: Path, series: np.ndarray, cine: Cine) -> None:
    place = geometry(cine)
    image = sitk.GetImageFromArray(series, isVector=False)
    image.SetSpacing((*place.spacing, cine.frame_time))
    image.SetOrigin((*place.origin, 0.0))
    direction = np.eye(4)
    direction[:3, :3] = np.reshape(place.direction, (3, 3))
    image.SetDirection(direction.ravel().tolist())
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def write_frames(
    raw_dataset_folder: Path,
    stacks: Mapping[str, tuple[str, Cine]],
    *,
    labelled: Collection[str],
    unlabelled: Collection[str] = (),
    test: Collection[str] = (),
    frames_per_labelled: Literal["ed_es", "all"] = "ed_es",
    settings: Mapping[str, object] | None = None,
    jobs: int = 1,
    overwrite: bool = False,
) -> CaseTable:
    """Write a raw dataset whose cases are the volumes of single frames, `<stack>_fr<NNN>`.

    Args:
        raw_dataset_folder: `nnUNet_raw/DatasetXXX_Name`.
        stacks: subject and cine of each stack. Each is looked up once and then let go, so a mapping that draws a cine
            when it is asked for needs memory for one.
        labelled: stacks in `imagesTr`.
        unlabelled: stacks in `imagesUn`, all frames.
        test: stacks in `imagesTs` and `labelsTs`, all frames.
        frames_per_labelled: of labelled stacks, only ED and ES (paper 003) or all frames.
        settings: what else determines the files, so that a rerun with other settings is refused.
        jobs: processes of nnU-Net's integrity check.
        overwrite: replace what an earlier run wrote.

    Returns:
        The case table: `stack_id`, `frame_index` (0-based), `phase` (ED, ES or empty).

    Raises:
        DatasetError: a stack with two roles, one that is missing, views that differ, or a folder of something else.
        ImageError: intensities that cannot be stored.
    """
    roles = {Role.LABELLED: labelled, Role.UNLABELLED: unlabelled, Role.TEST: test}
    wanted = [(stack, role) for role, names in roles.items() for stack in names]
    _check_stacks(wanted, stacks)
    about = {"frames_per_labelled": frames_per_labelled, **(settings or {})}
    about |= {role.value: sorted(names) for role, names in roles.items()}
    dataset: RawDataset | None = None
    rows: list[dict[str, object]] = []
    for stack, role in track(wanted, "Writing frames", total=len(wanted)):
        subject, cine = stacks[stack]
        if dataset is None:
            labels = {"background": 0, **STRUCTURES[cine.view]}
            dataset = RawDataset(raw_dataset_folder, ("MRI",), labels, ".nii.gz", {"view": cine.view, **about})
            dataset.begin(overwrite=overwrite)
        if dataset.settings["view"] != cine.view:
            raise DatasetError(f"{stack}: is of the view {cine.view}, others are {dataset.settings['view']}; part them")
        key_frames = sorted({0, cine.end_systole})
        few = role is Role.LABELLED and frames_per_labelled == "ed_es"
        frames = key_frames if few else range(len(cine.image))
        rows += _write_stack(dataset, stack, cine, role, frames, {"subject_id": subject})
    assert dataset is not None  # _check_stacks refuses an empty list
    return dataset.finish(rows, jobs=jobs)


def _check_stacks(wanted: list[tuple[str, Role]], stacks: Mapping[str, tuple[str, Cine]]) -> None:
    if not any(role is Role.LABELLED for _, role in wanted):
        raise DatasetError("no stack is labelled; nnU-Net needs at least one to plan")
    seen: set[str] = set()
    known = set(stacks)  # names only: asking a mapping that draws for a stack would draw it
    for stack, _ in wanted:
        if stack not in known:
            raise DatasetError(f'the stack "{stack}" has a role but no images')
        if stack in seen:
            raise DatasetError(f'the stack "{stack}" has two roles; choose one of labelled, unlabelled, test')
        seen.add(stack)


def _write_stack(
    dataset: RawDataset, stack: str, cine: Cine, role: Role, frames: Collection[int], row: dict[str, object]
) -> list[dict[str, object]]:
    rows = []
    known = role is not Role.UNLABELLED
    images = whole_numbers(cine)
    for frame in frames:
        case = f"{stack}_fr{frame:03d}"
        if not dataset.has_case(case, role, labelled=known):
            label = cine.mask[frame] if known else None
            dataset.write_case(case, role, [images[frame]], label, geometry=geometry(cine))
        rows.append(
            {
                "case_id": case,
                "stack_id": stack,
                "frame_index": frame,
                "phase": cine.phase(frame),
                "role": role.value,
                **row,
            }
        )
    return rows


def pair_names(images: Path) -> list[str]:
    """Patients of whom a folder holds `<patient>_ED.nii.gz` and `<patient>_ES.nii.gz`.

    Raises:
        ImageError: a patient with one of the two, or none at all.
    """
    found = {path.name.removesuffix(".nii.gz") for path in images.glob("*.nii.gz")}
    patients = sorted({name[:-3] for name in found if name.endswith(("_ED", "_ES"))})
    if not patients:
        raise ImageError(f"{images}: holds no files <patient>_ED.nii.gz and <patient>_ES.nii.gz")
    for patient in patients:
        for phase in ("ED", "ES"):
            if f"{patient}_{phase}" not in found:
                raise ImageError(f"{images / patient}_{phase}.nii.gz: not found; a cycle needs both ED and ES")
    return patients


def cycle_of_pair(
    images: Path,
    labels: Path,
    patient: str,
    *,
    frames: int = 30,
    spacing: tuple[float, float, float] | None = None,
    rng: np.random.Generator | None = None,
) -> Cine:
    """Read `<patient>_ED.nii.gz` and `_ES` of images and masks, and build the cycle between them.

    Args:
        images: folder of the images.
        labels: folder of the masks.
        patient: a name of `pair_names`.
        frames: of the cycle.
        spacing: `(z, y, x)` in mm; that of the ED image, which the other files must share, where None.
        rng: for noise, see `warped_cycle`.

    Raises:
        ImageError: a file is missing, or the pair does not fit; the text names the patient.
    """
    arrays, stated = [], {}
    for phase in ("ED", "ES"):
        for folder in (images, labels):
            path = folder / f"{patient}_{phase}.nii.gz"
            array, place = read_volume(path)
            arrays.append(array)
            z, y, x = (*place.spacing, 1.0)[2::-1]
            stated[path] = (z, y, x)
    if spacing is None:
        spacing = next(iter(stated.values()))
        for path, found in stated.items():
            if not np.allclose(found, spacing, rtol=_SAME_SPACING, atol=0):
                raise ImageError(
                    f"{path}: has the spacing {_sizes(found)}, the ED image {_sizes(spacing)}; resample it, or give "
                    "--spacing where the files do not say it rightly"
                )
    try:
        return warped_cycle(*arrays, frames=frames, spacing=spacing, rng=rng)
    except ImageError as error:
        raise ImageError(f"{patient}: {error}") from error


def _sizes(spacing: tuple[float, float, float]) -> str:
    return " × ".join(f"{size:g}" for size in spacing) + " mm"
