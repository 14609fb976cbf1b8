from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest

from nnunet_qa.data.cine_dicom import write_ukbiobank_zip
from nnunet_qa.data.cine_files import geometry
from nnunet_qa.data.cine_phantom import Cine, aortic_cine
from nnunet_qa.errors import ImageError
from tests.data.test_cine_files import draw


def read(path: Path) -> tuple[dict[str, list[pydicom.Dataset]], list[str]]:
    """Files of each series, ordered by their trigger time, and the lines of the manifest."""
    series = defaultdict(list)
    with zipfile.ZipFile(path) as zipped:
        names = zipped.namelist()
        assert names.count("manifest.csv") == 1
        for name in names:
            if name.endswith(".dcm"):
                found = pydicom.dcmread(io.BytesIO(zipped.read(name)))
                found.filename = name
                series[found.SeriesDescription].append(found)
        manifest = zipped.read("manifest.csv").decode().splitlines()
    for found in series.values():
        found.sort(key=lambda dataset: float(dataset.TriggerTime))
    return dict(series), manifest


def test_a_short_axis_zip_holds_a_series_a_slice(tmp_path: Path) -> None:
    cine = draw(frames=4)
    path = write_ukbiobank_zip(tmp_path, "1000001", cine, np.random.default_rng(0))
    assert path == tmp_path / "1000001_20209_2_0.zip"
    series, manifest = read(path)
    names = [f"CINE_segmented_SAX_b{number}" for number in range(1, 8)]
    assert sorted(series) == names
    assert len({found.SeriesInstanceUID for name in names for found in series[name]}) == 7
    rebuilt = np.stack([[found.pixel_array for found in series[name]] for name in names], axis=1)
    np.testing.assert_array_equal(rebuilt, np.rint(cine.image))
    assert manifest[0].split(",")[0] == "filename"
    assert manifest[0].split(",")[-1] == "series discription"
    assert len(manifest) == 1 + 4 * 7
    listed = {line.split(",")[0]: line.split(",")[-1] for line in manifest[1:]}
    assert listed == {found.filename: name for name in names for found in series[name]}
    assert all(len(line.split(",")) == 5 for line in manifest[1:])  # the date's comma is not quoted


def test_the_place_of_slices_is_that_of_the_nifti_files(tmp_path: Path) -> None:
    cine = draw(frames=3)
    series, _ = read(write_ukbiobank_zip(tmp_path, "1", cine, np.random.default_rng(0)))
    place = geometry(cine)
    direction = np.reshape(place.direction, (3, 3))
    for number in range(7):
        found = series[f"CINE_segmented_SAX_b{number + 1}"]
        expected = np.array(place.origin) + 12.0 * number * direction[:, 2]
        for frame, dataset in enumerate(found):
            np.testing.assert_allclose(np.array(dataset.ImagePositionPatient, float), expected, atol=1e-5)
            np.testing.assert_allclose(np.array(dataset.ImageOrientationPatient, float), direction[:, :2].T.ravel())
            assert [float(value) for value in dataset.PixelSpacing] == [4.0, 4.2]  # between rows first
            assert float(dataset.TriggerTime) == pytest.approx(frame * cine.frame_time * 1000, abs=1e-3)
            assert dataset.CardiacNumberOfImages == 3
            assert dataset.PatientID == "1"


def test_the_aorta_has_a_zip_of_its_own(tmp_path: Path) -> None:
    cine = aortic_cine(np.random.default_rng(0), frames=3, shape=(64, 66), spacing=(6.0, 3.2, 3.4))
    path = write_ukbiobank_zip(tmp_path, "2", cine, np.random.default_rng(0))
    assert path.name == "2_20210_2_0.zip"
    series, _ = read(path)
    assert list(series) == ["CINE_segmented_Ao_dist"]
    assert len(series["CINE_segmented_Ao_dist"]) == 3


def test_the_same_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    cine = draw(frames=3)
    first, again, other = (
        write_ukbiobank_zip(tmp_path / name, "1", cine, np.random.default_rng(seed)).read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again != other


def test_negative_intensities_are_refused(tmp_path: Path) -> None:
    cine = draw(frames=3)
    with pytest.raises(ImageError, match="5: intensities go down to -"):
        write_ukbiobank_zip(tmp_path, "5", Cine(**{**vars(cine), "image": cine.image - 500}), np.random.default_rng(0))
    assert not list(tmp_path.iterdir())
