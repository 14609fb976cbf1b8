"""What UK Biobank phantoms have besides `cine_dicom`: long-axis views, and contours as cvi42 exports them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, register_namespace, tostring

import numpy as np
import pydicom
from skimage.measure import find_contours

from nnunet_qa.data.cine_dicom import FIELDS, Acquisition, write_series_zip
from nnunet_qa.data.images import Geometry
from nnunet_qa.files import replacing

SHORT_AXIS_CONTOURS: Mapping[str, tuple[int, ...]] = {
    "saendocardialContour": (1,),
    "saepicardialContour": (1, 2),
    "sarvendocardialContour": (3,),
}
"""cvi42's names of contours, and the values of UK Biobank's masks that lie inside of each."""
LONG_AXIS_CONTOURS: Mapping[str, tuple[int, ...]] = {"lalaContour": (1,), "laraContour": (2,)}
_SUBPIXEL = 4
_SPACES = {space: f"http://www.circlecvi.com/cvi42/Workspace/{space}/" for space in ("Hash", "List", "Point")}
_TURN = np.array([[0.6, 0.48, 0.64], [-0.8, 0.36, 0.48], [0.0, -0.8, 0.6]])  # of the 2Ch plane, LPS


def draw_long_axis(
    rng: np.random.Generator, *, chambers: int, frames: int = 20, shape: tuple[int, int] = (64, 60)
) -> tuple[Acquisition, np.ndarray]:
    """Draw a long-axis view: a ventricle that contracts and the atria that fill meanwhile.

    Args:
        rng: source of all chance.
        chambers: 2, 3 or 4; only 4 shows the right atrium.
        frames: over one heartbeat, end-diastole first.
        shape: (rows, columns).

    Returns:
        The images, and masks `(frames, 1, rows, columns)` with 1 left and 2 right atrium.
    """
    rows, columns = shape
    row, column = np.indices(shape)
    filled = np.sin(np.pi * np.arange(frames) / frames) ** 2  # of the atria
    size = rng.uniform(0.9, 1.1)
    image = np.full((frames, 1, *shape), 60.0)
    mask = np.zeros(image.shape, dtype=np.uint8)
    for frame, part in enumerate(filled):
        middle, gap = columns * 0.5, columns * 0.22
        sides = {1: middle + gap, 2: middle - gap} if chambers == 4 else {1: middle}
        for value, centre in sides.items():
            radius = size * columns * (0.11 + 0.05 * part)
            mask[frame, 0][(row - 0.72 * rows) ** 2 + (column - centre) ** 2 < radius**2] = value
            long, short = rows * (0.26 - 0.04 * part), columns * (0.14 - 0.05 * part)
            ventricle = ((row - 0.34 * rows) / long) ** 2 + ((column - centre) / short) ** 2 < 1
            image[frame, 0][ventricle & (mask[frame, 0] == 0)] = 200.0
    image[mask > 0] = 180.0
    image += rng.normal(0, 6, image.shape)
    turned = np.roll(_TURN, chambers, axis=0)  # each view lies in a plane of its own
    place = Geometry((1.8, 1.6, 6.0), (-40.0 - chambers, -30.0, 25.5), tuple(turned.ravel().tolist()))
    acquisition = Acquisition(
        image=np.rint(image.clip(0)).astype(np.uint16),
        place=place,
        frame_time=0.03,
        name=f"CINE_segmented_LAX_{chambers}Ch",
    )
    return acquisition, mask


def write_long_axis_zip(
    folder: Path, eid: str, acquisitions: Collection[Acquisition], rng: np.random.Generator
) -> Path:
    """Write `<eid>_20208_2_0.zip` with the long-axis views of a subject; see `write_series_zip`."""
    return write_series_zip(folder / f"{eid}_{FIELDS['la']}_2_0.zip", eid, list(acquisitions), rng)


def write_cvi42(
    path: Path,
    zipped: Path,
    mask: np.ndarray,
    *,
    frames: Collection[int],
    contours: Mapping[str, tuple[int, ...]] = SHORT_AXIS_CONTOURS,
    name: str = "",
) -> Path:
    """Write the outlines of masks as a cvi42 workspace.

    Args:
        path: where to.
        zipped: the zip of the images, whose identifiers the contours refer to.
        mask: `(frames, slices, rows, columns)`. Of each structure the largest part is outlined, without its holes.
        frames: those that are annotated.
        contours: see `SHORT_AXIS_CONTOURS`.
        name: SeriesDescription of the images, for a zip of several views; empty for all.

    Returns:
        The file.
    """
    for space, address in _SPACES.items():
        register_namespace(space, address)
    root = Element(_tag("Hash", "item"), {_tag("Hash", "key"): "StudyMap"})
    states = _item(root, "ImageStates")
    for uid, (frame, index, series) in sorted(_images(zipped).items()):
        if frame in frames and name in ("", series):
            outlined = _item(_item(states, uid), "Contours")
            for contour, values in contours.items():
                _add_contour(outlined, contour, np.isin(mask[frame, index], values))
    with replacing(path) as temporary:
        temporary.write_bytes(tostring(root, encoding="utf-8", xml_declaration=True))
    return path


def _images(zipped: Path) -> dict[str, tuple[int, int, str]]:
    """Frame, slice and series of each image that `write_series_zip` wrote."""
    found = {}
    with zipfile.ZipFile(zipped) as archive:
        for name in archive.namelist():
            if name.endswith(".dcm"):
                image = pydicom.dcmread(io.BytesIO(archive.read(name)), stop_before_pixels=True)
                found[str(image.SOPInstanceUID)] = (
                    int(image.InstanceNumber) - 1,
                    int(image.SeriesNumber) - 1,
                    str(image.SeriesDescription),
                )
    return found


def _add_contour(parent: Element, name: str, inside: np.ndarray) -> None:
    outlines = find_contours(np.pad(inside, 1).astype(float), 0.5)
    if not outlines:
        return
    points = max(outlines, key=len)[:-1, ::-1] - 1
    contour = _item(parent, name)
    listed = _item(contour, "Points")
    for x, y in np.rint(points * _SUBPIXEL).astype(int).tolist():
        point = SubElement(listed, _tag("List", "item"))
        for axis, value in (("x", x), ("y", y)):
            SubElement(point, _tag("Point", axis)).text = str(value)
    _item(contour, "SubpixelResolution").text = str(_SUBPIXEL)


def _item(parent: Element, key: str) -> Element:
    return SubElement(parent, _tag("Hash", "item"), {_tag("Hash", "key"): key})


def _tag(space: str, name: str) -> str:
    return f"{{{_SPACES[space]}}}{name}"
