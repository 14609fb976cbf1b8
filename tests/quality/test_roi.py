from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nnunet_qa.data.images import read_picture, read_volume
from nnunet_qa.data.retina import find_retina
from nnunet_qa.errors import ImageError
from nnunet_qa.quality.roi import from_labels, lungs, retina


def ellipse(rows: int, columns: int, centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    row, column = np.indices((rows, columns))
    return ((row - centre[0]) / radii[0]) ** 2 + ((column - centre[1]) / radii[1]) ** 2 < 1


def chest(slices: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Phantom in HU and its lungs: body with fat, muscle, two lungs with vessels, a table below, gas in the bowel."""
    body, muscle = (ellipse(128, 128, (60, 64), radii) for radii in ((45, 55), (41, 51)))
    truth = ellipse(128, 128, (60, 40), (25, 17)) | ellipse(128, 128, (60, 88), (25, 17))
    vessel = ellipse(128, 128, (60, 40), (2, 2))
    hu = np.full((128, 128), -1000.0)
    hu[body] = -100
    hu[muscle] = 40
    hu[truth] = -850
    hu[vessel] = 50
    hu[ellipse(128, 128, (88, 64), (3, 3))] = -900
    hu[112:115, 10:118] = 200
    noise = np.random.default_rng(0).normal(scale=20, size=(slices, 128, 128))
    return (hu + noise).astype(np.int16), np.repeat(truth[None], slices, axis=0)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_lungs_in_hu_and_scaled_slice_by_slice() -> None:
    image, truth = chest()
    low, high = image.min(axis=(1, 2), keepdims=True), image.max(axis=(1, 2), keepdims=True)
    scaled = np.round((image - low) / (high - low) * 255).astype(np.uint8)
    for array in (image, scaled, scaled / 255, image[:1]):
        found = lungs(array)
        assert dice(found, truth[: len(array)]) > 0.96
        assert found[0, 60, 40]  # the vessel
        assert not found[0, 88, 64]  # the gas
        assert not found[:, :10].any()


def test_lungs_of_what_is_no_chest() -> None:
    assert not lungs(np.full((2, 64, 64), 5, dtype=np.uint8)).any()
    assert not lungs(np.full((1, 64, 64), -1000, dtype=np.int16)).any()
    with pytest.raises(ImageError, match="is no stack of slices"):
        lungs(np.zeros((8, 8)))
    with pytest.raises(ImageError, match="NaN"):
        lungs(np.full((1, 8, 8), np.nan))


def test_labels() -> None:
    labels = np.array([[0, 1], [2, 3]])
    assert from_labels(labels).tolist() == [[False, True], [True, True]]
    assert from_labels(labels, [1, 3]).tolist() == [[False, True], [False, True]]
    assert not from_labels(labels, [7]).any()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_retina_is_the_band_without_the_padding(kind: type) -> None:
    bscan = np.random.default_rng(0).integers(0, 30, size=(200, 300)).astype(np.uint8)
    bscan[60:100] += 150
    shifted = bscan.copy()
    row, column = np.indices(bscan.shape)
    corner = column > 200 + row
    shifted[corner] = 255
    noise = np.random.default_rng(1).integers(0, 255, size=bscan.shape).astype(np.uint8)
    found = retina(np.stack([bscan, shifted, noise]).astype(kind))
    band = find_retina(bscan)
    assert found[0, band.top : band.bottom].all()
    assert found[0].sum() == band.rows * 300
    assert found[1, 80, :250].all()
    assert not found[1][corner].any()
    assert not found[2].any()
    with pytest.raises(ImageError, match="no retina found"):
        retina(noise[None])


@pytest.mark.real_data
def test_lungs_of_real_volumes(real_data: Path) -> None:
    covered, agreement = [], []
    for path in sorted((real_data / "covid19_ct" / "images").glob("*.nii.gz")):
        truth = read_volume(real_data / "covid19_ct" / "labels" / path.name)[0] > 0
        found = lungs(read_volume(path)[0])
        covered.append((found & truth).sum() / truth.sum())
        agreement.append(dice(found, truth))
    assert len(covered) == 13
    assert np.mean(covered) >= 0.91
    assert np.mean(agreement) >= 0.92
    assert min(covered) >= 0.75


@pytest.mark.real_data
def test_fluid_of_real_bscans_lies_in_the_retina(real_data: Path) -> None:
    folder = real_data / "oct_duke_dme"
    for path in sorted((folder / "images").glob("*.png"))[::6]:
        image, fluid = read_picture(path), read_picture(folder / "fluid_mask" / path.name) > 0
        found = retina(image[None])[0]
        assert ndimage.label(found)[1] == 1
        assert 0.15 < found.mean() < 0.7
        assert not fluid.any() or found[fluid].mean() > 0.99
