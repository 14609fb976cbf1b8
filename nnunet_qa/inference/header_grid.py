"""Where the voxels of an image lie, from its header, so that clicks can be checked before any prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import SimpleITK as sitk
from nibabel.orientations import inv_ornt_aff, io_orientation
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_qa.errors import ImageError
from nnunet_qa.inference.crf_folder import CaseReader
from nnunet_qa.interaction.grid import Grid


def header_grid(reader: CaseReader, paths: Sequence[Path]) -> Grid:
    """The grid that an image has when the dataset's reader has read it.

    An image without a place in its header (PNG, TIFF) is read whole.

    Args:
        reader: of the dataset.
        paths: files of the image, one a channel; nnU-Net takes the place from the first.

    Raises:
        ImageError: the file cannot be read.
    """
    kind = type(reader.files)
    try:
        if kind is SimpleITKIO:
            return _of_simpleitk(paths[0])
        if kind in (NibabelIO, NibabelIOWithReorient):
            return _of_nibabel(paths[0], reorient=kind is NibabelIOWithReorient)
    except Exception as error:  # both libraries raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ImageError(f"{paths[0]}: cannot be read as an image: {reason}") from error
    image, properties = reader.image(paths)
    return Grid.of(image.shape[1:], properties)


def _of_simpleitk(path: Path) -> Grid:
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    place = {"spacing": header.GetSpacing(), "origin": header.GetOrigin(), "direction": header.GetDirection()}
    shape = header.GetSize()[::-1]
    return Grid.of((1,) * (3 - len(shape)) + tuple(shape), {"sitk_stuff": place})


def _of_nibabel(path: Path, *, reorient: bool) -> Grid:
    header: Any = nibabel.load(path)
    affine, shape = header.affine, header.shape
    if reorient:
        turn = io_orientation(affine)
        affine, shape = affine @ inv_ornt_aff(turn, shape), [shape[axis] for axis in turn[:, 0].argsort()]
    return Grid.of(shape[::-1], {"nibabel_stuff": {"original_affine": affine}})
