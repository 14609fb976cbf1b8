from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_qa.data.images import write_image
from nnunet_qa.errors import ImageError
from nnunet_qa.inference.crf_folder import CaseReader
from nnunet_qa.inference.header_grid import header_grid
from nnunet_qa.interaction.grid import Grid


def oblique(path: Path, shape: tuple[int, ...]) -> Path:
    """An image none of whose axes is one of the patient, the first being nearest to the second of those."""
    image = sitk.Image(shape[::-1], sitk.sitkFloat32)
    if len(shape) == 3:
        image.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 1.9).GetMatrix())
    image.SetSpacing((0.7, 0.9, 2.5)[: len(shape)])
    image.SetOrigin((-31.0, 12.5, 104.0)[: len(shape)])
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        (SimpleITKIO, "a_0000.nii.gz", (4, 5, 6)),
        (SimpleITKIO, "a_0000.mha", (5, 6)),
        (NibabelIO, "a_0000.nii.gz", (4, 5, 6)),
        (NibabelIOWithReorient, "a_0000.nii.gz", (4, 5, 6)),
        (NaturalImage2DIO, "a_0000.png", (5, 6)),
    ],
)
def test_it_is_the_grid_of_the_image_that_is_read(
    tmp_path: Path, kind: type, name: str, shape: tuple[int, ...]
) -> None:
    path = tmp_path / name
    if kind is NaturalImage2DIO:
        write_image(path, np.zeros(shape, np.uint8))
    else:
        oblique(path, shape)
    array, properties = kind().read_images([str(path)])
    expected = Grid.of(array.shape[1:], properties)
    found = header_grid(CaseReader(files=kind(), classes=2, file_ending=path.suffix), [path])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-5)


@pytest.mark.parametrize("kind", [SimpleITKIO, NibabelIO])
def test_voxels_are_not_read_and_a_file_without_a_header_is_refused(tmp_path: Path, kind: type) -> None:
    reader = CaseReader(files=kind(), classes=2, file_ending=".nii")
    path = oblique(tmp_path / "a_0000.nii", (4, 5, 6))
    path.write_bytes(path.read_bytes()[:400])
    assert header_grid(reader, [path]).shape == (4, 5, 6)
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a_0000\.nii: cannot be read as an image: ") as error:
        header_grid(reader, [path])
    assert "\n" not in str(error.value)
