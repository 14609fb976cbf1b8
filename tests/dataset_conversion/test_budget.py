from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_qa.dataset_conversion import budget, oct_retouch
from nnunet_qa.dataset_conversion.covid_grid import read_upright
from nnunet_qa.dataset_conversion.ukbiobank_nifti import read_nifti_stack
from nnunet_qa.dataset_conversion.volume_files import read_source_volume
from nnunet_qa.errors import ImageError

SIZE = (20000, 20000, 10)
WANTED = "8000000000 bytes"


def nifti(path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SIZE)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(10_000)))


def nrrd(path: Path) -> None:
    axes = "space: left-posterior-superior\n"
    directions = "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
    sizes = f"dimension: 3\nsizes: {SIZE[0]} {SIZE[1]} {SIZE[2]}\n{directions}endian: little\nencoding: gzip\n"
    path.write_bytes(f"NRRD0004\ntype: short\n{axes}{sizes}\n".encode() + gzip.compress(bytes(10_000)))


def mha(path: Path) -> None:
    size = " ".join(map(str, SIZE))
    entries = f"NDims = 3\nDimSize = {size}\nElementType = MET_SHORT\nCompressedData = True\n"
    path.write_bytes(f"ObjectType = Image\n{entries}ElementDataFile = LOCAL\n".encode() + bytes(10_000))


@pytest.mark.parametrize(("ending", "write"), [(".nii.gz", nifti), (".nrrd", nrrd), (".mha", mha)])
def test_headers_are_not_believed(
    ending: str, write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"bomb{ending}"
    write(path)
    monkeypatch.setattr(sitk, "ReadImage", lambda *_: pytest.fail("the pixels were asked for"))
    readers: list[Callable[[Path, Path], object]] = [read_source_volume]
    if ending == ".nii.gz":
        readers += [read_upright, lambda path, _: read_nifti_stack(path)]
    for reader in readers:
        with pytest.raises(
            ImageError, match=rf"bomb\{ending}: unpacks to {WANTED} by its header, but weighs"
        ) as caught:
            reader(path, tmp_path)
        assert "\n" not in str(caught.value)


def written(path: Path, array: np.ndarray) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=True)
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_only_what_is_large_and_far_larger_than_its_file(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    empty = np.zeros((20, 100, 100), np.int16)
    noise = rng.integers(-1000, 1000, empty.shape).astype(np.int16)
    paths = [written(tmp_path / f"{name}{ending}", array) for name, array in (("empty", empty), ("noise", noise))]
    for budget_now, refused in ((empty.nbytes, False), (empty.nbytes - 1, True)):
        monkeypatch.setattr(budget, "BUDGET", budget_now)
        np.testing.assert_array_equal(read_source_volume(paths[1], tmp_path)[0], noise)
        if refused:
            with pytest.raises(ImageError, match="unpacks to 400000 bytes"):
                read_source_volume(paths[0], tmp_path)
        else:
            np.testing.assert_array_equal(read_source_volume(paths[0], tmp_path)[0], empty)


def test_retouch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "oct.mhd", np.zeros((4, 200, 200), np.uint8))
    scan = oct_retouch.Scan("cirrus_1", "cirrus", tmp_path, annotated=False)
    monkeypatch.setattr(budget, "BUDGET", 1000)
    options = {"mode": oct_retouch.Mode.VOLUMES, "framing": oct_retouch.Framing(), "test": set()}
    with pytest.raises(ImageError, match=rf"{path.name}: unpacks to 160000 bytes"):
        list(oct_retouch.read_scan(scan, source=tmp_path, **options))
