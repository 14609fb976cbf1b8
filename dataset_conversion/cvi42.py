"""Contours of cvi42 (Circle Cardiovascular Imaging) as it exports them in XML, filled to masks.

A workspace holds, for each DICOM image by its SOPInstanceUID, a list of named contours; their points are in units of
1 / SubpixelResolution of a pixel, with whole pixels at pixel centres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from skimage.draw import polygon2mask

from nnunet_qa.errors import ImageError

ENDINGS = (".cvi42wsx", ".xml")
MAX_BYTES = 512 << 20
"""Larger files are refused; a workspace of one subject has some megabytes."""
Contours = dict[str, dict[str, np.ndarray]]
"""By SOPInstanceUID and contour name: points `(points, 2)`, x and y in pixels."""


def read_contours(path: Path) -> Contours:
    """Read all contours of a workspace.

    Raises:
        ImageError: the file is too large, no XML, expands entities, or holds points that are no numbers.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, which no workspace of one subject is")
    return parse_contours(path.read_bytes(), str(path))


def parse_contours(content: bytes, name: str) -> Contours:
    """As `read_contours`, of what is in a file; `name` is for errors.

    Raises:
        ImageError: see `read_contours`.
    """
    try:
        root = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise ImageError(f"{name}: declares entities or a DTD, as no cvi42 export does; not read") from error
    except (ParseError, ValueError, LookupError) as error:  # LookupError: an encoding that does not exist
        raise ImageError(f"{name}: is no XML that can be read (cut off?): {error}") from error
    found: Contours = {}
    for states in root.iter():
        if _key(states) != "ImageStates":
            continue
        for image in states:
            for part in image:
                if _key(part) == "Contours":
                    found.setdefault(_key(image), {}).update(_contours(part, name))
    return {uid: contours for uid, contours in found.items() if contours}


def fill(contours: Mapping[str, np.ndarray], shape: tuple[int, int], order: Sequence[tuple[str, int]]) -> np.ndarray:
    """Mask of the pixels whose centre lies in a contour.

    Args:
        contours: of one image.
        shape: (rows, columns).
        order: contour names and their values; later ones are laid over earlier ones.

    Returns:
        `(rows, columns)` uint8, 0 outside.
    """
    mask = np.zeros(shape, dtype=np.uint8)
    for name, value in order:
        if name in contours:
            mask[polygon2mask(shape, contours[name][:, ::-1])] = value
    return mask


def _contours(parent: Element, name: str) -> dict[str, np.ndarray]:
    """Contours of one image; those without an area are left out."""
    found = {}
    for contour in parent:
        parts = {_key(part): part for part in contour}
        if "Points" not in parts:
            continue
        try:
            points = np.array([_point(item) for item in parts["Points"]], dtype=np.float64).reshape(-1, 2)
            units = float(parts["SubpixelResolution"].text or "") if "SubpixelResolution" in parts else 1.0
        except (ValueError, KeyError) as error:
            raise ImageError(f"{name}: the points of a {_key(contour)} are no numbers; export it again") from error
        if not (np.isfinite(points).all() and np.isfinite(units) and units > 0):
            raise ImageError(f"{name}: the points of a {_key(contour)} are not finite; export it again")
        if len(points) >= 3:
            found[_key(contour)] = points / units
    return found


def _point(item: Element) -> tuple[float, float]:
    texts = {part.tag.rpartition("}")[2]: part.text or "" for part in item.iter()}
    return float(texts["x"]), float(texts["y"])


def _key(element: Element) -> str:
    """The attribute `Hash:key`, whatever address its name space has."""
    return next((text for name, text in element.attrib.items() if name.rpartition("}")[2] == "key"), "")
