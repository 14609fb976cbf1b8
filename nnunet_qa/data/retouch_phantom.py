"""Drawn OCT volumes with three fluids in the layout of the RETOUCH challenge: for tests, demos and dry runs.

Bogunović et al. 2019, IEEE Transactions on Medical Imaging 38(8): intraretinal fluid, subretinal fluid and pigment
epithelial detachments in scans of three vendors.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from nnunet_qa.data.images import Geometry
from nnunet_qa.data.phantoms import Bscan, SubjectLook, draw_bscan
from nnunet_qa.files import replacing, write_text
from nnunet_qa.progress import track

VENDORS = ("Cirrus", "Spectralis", "Topcon")
EXTENT = (6.0, 2.0, 6.0)
"""Size of a scan in mm: columns, rows (depth), B-scans."""
_SIXTEEN_BITS = ("Spectralis",)
_TYPES = {np.dtype(np.uint8): "MET_UCHAR", np.dtype(np.int16): "MET_SHORT", np.dtype(np.uint16): "MET_USHORT"}
_IRF, _SRF, _PED = 1, 2, 3
_BASES = {_SRF: 5, _PED: 7}  # the layer boundary that a fluid rests on


def write_retouch(
    folder: Path,
    rng: np.random.Generator,
    *,
    vendors: Iterable[str] = VENDORS,
    annotated: int = 2,
    pool: int = 1,
    rows: int = 124,
    columns: int = 128,
    bscans: int = 8,
    severity: float | None = None,
) -> list[Path]:
    """Write `RETOUCH-TrainingSet-<vendor>/TRAIN001/{oct,reference}.{mhd,raw}` and `RETOUCH-TestSet-<vendor>/TEST001/…`.

    Scans are numbered through over the vendors; those of Spectralis have 16 bits, those for testing no reference.

    Args:
        folder: where the sets' folders are made.
        rng: source of all chance.
        vendors: names of the devices.
        annotated: training scans of each vendor.
        pool: test scans of each vendor.
        rows: height of a B-scan in pixels.
        columns: width of a B-scan in pixels.
        bscans: B-scans of a volume.
        severity: of all subjects, 0 to 1; drawn for each where None.

    Returns:
        The folders of the scans.
    """
    wanted = [
        folder / f"RETOUCH-{kind}Set-{vendor}" / f"{short}{place * count + index + 1:03d}"
        for place, vendor in enumerate(vendors)
        for kind, short, count in (("Training", "TRAIN", annotated), ("Test", "TEST", pool))
        for index in range(count)
    ]
    shape = (columns, rows, bscans)
    spacing = tuple(extent / number for extent, number in zip(EXTENT, shape, strict=True))
    geometry = Geometry(spacing, (0.0, 0.0, 0.0), tuple(np.eye(3).ravel().tolist()))
    for scan in track(wanted, "Drawing scans", total=len(wanted)):
        look = SubjectLook.draw(rng, severity=severity)
        drawn = [
            draw_with_fluids(rng, look, position=float(at), rows=rows, columns=columns)
            for at in np.linspace(-1, 1, bscans + 2)[1:-1]
        ]
        image, reference = (np.stack(part) for part in zip(*drawn, strict=True))
        if scan.parent.name.endswith(_SIXTEEN_BITS):
            image = image.astype(np.uint16) * 257
        write_scan(scan, image, reference if scan.name.startswith("TRAIN") else None, geometry)
    return wanted


def write_scan(folder: Path, image: np.ndarray, reference: np.ndarray | None, geometry: Geometry) -> None:
    """Write one scan as the challenge does.

    Args:
        folder: of the scan.
        image: `(B-scans, rows, columns)`, uint8, uint16 or int16.
        reference: label values on the same grid, 1 IRF, 2 SRF, 3 PED; None for a scan that is not annotated.
        geometry: of both.
    """
    write_metaimage(folder / "oct.mhd", image, geometry)
    if reference is not None:
        write_metaimage(folder / "reference.mhd", reference.astype(np.uint8), geometry)


def write_metaimage(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a `.mhd` header by hand and the bytes of the voxels in `.raw` beside it, in one step each.

    Args:
        path: of the header.
        array: `(slices, rows, columns)`, uint8, uint16 or int16.
        geometry: position in the patient.
    """
    data = path.with_suffix(".raw")
    with replacing(data) as temporary:
        temporary.write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
    axes = np.reshape(geometry.direction, (3, 3)).T  # MetaImage lists the direction of one axis after the other
    entries = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": False,
        "TransformMatrix": _spaced(axes.ravel()),
        "Offset": _spaced(geometry.origin),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _spaced(geometry.spacing),
        "DimSize": _spaced(reversed(array.shape)),
        "ElementType": _TYPES[array.dtype],
        "ElementDataFile": data.name,
    }
    write_text(path, "".join(f"{key} = {value}\n" for key, value in entries.items()))


def _spaced(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:.17g}" for number in numbers)


def draw_with_fluids(
    rng: np.random.Generator, look: SubjectLook, *, position: float, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a B-scan with cysts, and with a lens of fluid under the retina and one under the pigment epithelium.

    Args:
        rng: source of all chance.
        look: of the subject.
        position: of the B-scan in its volume, −1 to 1; fluid fades away from the middle.
        rows: height in pixels.
        columns: width in pixels.

    Returns:
        The image and the label values, both `(rows, columns)` uint8.
    """
    bscan = draw_bscan(rng, look=look, position=position, rows=rows, columns=columns, padding=False)
    image, labels = bscan.image.copy(), np.where(bscan.fluid > 0, _IRF, 0).astype(np.uint8)
    for value, boundary in _BASES.items():
        lens = _lens(rng, bscan, boundary, burden=look.severity * float(np.exp(-((position / 0.6) ** 2))))
        labels[lens] = value
        image[lens] //= 5
    return image, labels


def _lens(rng: np.random.Generator, bscan: Bscan, boundary: int, *, burden: float) -> np.ndarray:
    """Pixels between a layer boundary and a dome above it."""
    rows, columns = bscan.image.shape
    offset = (np.arange(columns) / columns - rng.uniform(0.3, 0.7)) / rng.uniform(0.1, 0.25)
    height = rows * rng.uniform(0.04, 0.08) * burden * (1 - offset**2).clip(0)
    row = np.arange(rows)[:, None] + 0.5
    base = bscan.layers[boundary]
    return np.asarray((row < base) & (row >= base - height))
