from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.io import imread

from nnunet_qa.config import QALossConfig
from nnunet_qa.data.images import read_volume, write_image
from nnunet_qa.data.paths import raw_dataset_folder, read_json, read_plans
from nnunet_qa.errors import DatasetError, ImageError, SelectionError
from nnunet_qa.inference.case_montages import (
    CaseFiles,
    CaseRenderer,
    case_files_of,
    case_renderer,
    dataset_images,
    fitting_renderer,
    label_maps,
)
from nnunet_qa.quality.montage import MontageSpec
from tests.small import write_tiny

CASE = "S1_c1"


@dataclass(frozen=True)
class Source:
    """A planned phantom dataset."""

    raw: Path
    dataset_json: dict[str, Any]
    plans: dict[str, Any]

    def renderer(self, configuration: str, settings: QALossConfig | None = None, **more: Any) -> CaseRenderer:
        images = self.images()[CASE]
        return case_renderer(
            self.plans, configuration, self.dataset_json, settings or QALossConfig(), images=images, **more
        )

    def images(self) -> dict[str, list[Path]]:
        return dataset_images(self.raw, self.dataset_json)

    def files(self, case: str = CASE, folder: Path | None = None) -> CaseFiles:
        folder = folder or self.raw / "labelsTr"
        (found,) = case_files_of([case], folder, self.images(), {}, self.dataset_json["file_ending"])
        return found


def source_of(name: str) -> Source:
    raw = raw_dataset_folder(name)
    return Source(raw, read_json(raw / "dataset.json"), read_plans(name, "nnUNetPlans"))


def numpy_slices(image: np.ndarray, labels: np.ndarray, spec: MontageSpec, groups: list[list[int]]) -> np.ndarray:
    """RGB slices `(slices, rows, columns, 3)` in bytes, from percentiles that normalisation leaves where they are."""
    low, high = np.quantile(image, [0.005, 0.995])
    shades = np.clip((image - low) / (high - low), 0, 1)
    masks = [np.isin(labels, group)[..., None] for group in groups]
    colour = sum(mask * np.array(spec.palette[k]) for k, mask in enumerate(masks)) / np.maximum(sum(masks), 1)
    return 255 * (0.6 * shades[..., None] + 0.4 * colour)


def numpy_montage(slices: np.ndarray, spec: MontageSpec) -> np.ndarray:
    """Slice k in tile (k // columns, k mod columns), `(3, rows, columns)`."""
    (rows, columns), (height, width) = spec.grid, slices.shape[1:3]
    picture = np.zeros((rows * height, columns * width, 3))
    for k, one in enumerate(slices):
        top, left = k // columns * height, k % columns * width
        picture[top : top + height, left : left + width] = one
    return picture.transpose(2, 0, 1)


@pytest.mark.parametrize(("kind", "groups"), [("2d", [[1], [2]]), ("regions", [[1, 2], [2]])])
def test_a_picture(planned: dict[str, str], kind: str, groups: list[list[int]]) -> None:
    source = source_of(planned[kind])
    drawer = source.renderer("2d")
    files = source.files()
    image, labels = imread(files.images[0]).astype(float), imread(files.labels)
    spec = drawer.renderer.specs[0]
    assert drawer.slices is None
    assert spec.size == spec.tile == image.shape, "or this is no independent rendering"
    drawn = drawer.pictures(files)
    assert drawn.dtype == torch.uint8
    expected = numpy_slices(image[None], labels[None], spec, groups)
    assert np.abs(drawn[0].numpy() - numpy_montage(expected, spec)).max() <= 1.01


def test_every_slice_of_a_volume(planned: dict[str, str]) -> None:
    source = source_of(planned["3d"])
    drawer = source.renderer("3d_fullres")
    files = source.files()
    image, labels = (read_volume(path)[0] for path in (files.images[0], files.labels))
    spec = drawer.renderer.specs[0]
    assert (spec.axis, spec.slices, spec.tile) == (0, 16, image.shape[1:])
    expected = numpy_montage(numpy_slices(image.astype(float), labels, spec, [[1], [2]]), spec)
    assert np.abs(drawer.pictures(files)[0].numpy() - expected).max() <= 1.01


def test_views_cut_along_their_axes(planned: dict[str, str]) -> None:
    source = source_of(planned["3d"])
    drawer = source.renderer("3d_fullres", QALossConfig(views=(0, 2)), slices=9)
    first, second = drawer.patches(source.files())
    whole = source.renderer("3d_fullres").patches(source.files())[0]
    assert whole.image.shape == (16, 32, 40)
    np.testing.assert_array_equal(first.labels, whole.labels[[0, 2, 4, 6, 8, 9, 11, 13, 15]])  # (2k + 1) 16 // 18
    np.testing.assert_array_equal(second.image, whole.image[:, :, [2, 6, 11, 15, 20, 24, 28, 33, 37]])
    pictures = drawer.pictures(source.files())
    assert pictures.shape == (2, 3, *drawer.renderer.specs[0].size)


@pytest.mark.parametrize(
    ("settings", "slices", "shown"),
    [(QALossConfig(batch_size=7), None, 7), (QALossConfig(), 7, 9), (QALossConfig(batch_size=20), None, 20)],
)
def test_slices_of_a_volume_in_a_2d_configuration(
    planned: dict[str, str], settings: QALossConfig, slices: int | None, shown: int
) -> None:
    source = source_of(planned["3d"])
    drawer = source.renderer("2d", settings, slices=slices)
    assert drawer.slices == shown
    files = source.files()
    image, labels = (read_volume(path)[0] for path in (files.images[0], files.labels))
    kept = [int((k + 0.5) * 16 / shown) for k in range(shown)]  # with repetitions where there are fewer slices
    (patch,) = drawer.patches(files)
    np.testing.assert_array_equal(patch.labels, labels[kept])
    spec = drawer.renderer.specs[0]
    if spec.size == (spec.grid[0] * spec.tile[0], spec.grid[1] * spec.tile[1]):
        expected = numpy_montage(numpy_slices(image[kept].astype(float), labels[kept], spec, [[1], [2]]), spec)
        assert np.abs(drawer.pictures(files)[0].numpy() - expected).max() <= 1.01


def test_as_many_slices_as_a_training_shows(planned: dict[str, str]) -> None:
    source = source_of(planned["3d"])
    assert source.renderer("2d").slices == source.plans["configurations"]["2d"]["batch_size"]


@pytest.mark.parametrize(("configuration", "slices"), [("2d", 5), ("3d_fullres", 4)])
def test_the_montages_of_a_discriminator_are_found_again(
    planned: dict[str, str], configuration: str, slices: int
) -> None:
    source = source_of(planned["3d"])
    made = source.renderer(configuration, slices=slices)
    again = fitting_renderer(
        made.renderer.specs[0],
        source.plans,
        configuration,
        source.dataset_json,
        QALossConfig(),
        images=source.images()[CASE],
    )
    assert again == made


def test_what_cannot_be_drawn(planned: dict[str, str], tmp_path: Path) -> None:
    source = source_of(planned["2d"])
    drawer = source.renderer("2d")

    def wrong(array: np.ndarray) -> CaseFiles:
        write_tiny(tmp_path / f"{CASE}.png", array)
        return source.files(folder=tmp_path)

    with pytest.raises(ImageError, match=rf"{CASE}.png: cannot be laid over .*{CASE}_0000.png"):
        drawer.pictures(wrong(np.zeros((8, 8), np.uint8)))
    with pytest.raises(ImageError, match=rf"{CASE}.png: label value 9 is not in dataset.json"):
        drawer.pictures(wrong(np.full((48, 64), 9, np.uint8)))
    (tmp_path / f"{CASE}.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=rf"{CASE}.png: cannot be laid over"):
        drawer.pictures(source.files(folder=tmp_path))
    with pytest.raises(SelectionError, match="pictures, not volumes; leave out --slices"):
        source.renderer("2d", slices=4)
    with pytest.raises(DatasetError, match=r'no configuration "3d_fulres"; found: 2d'):
        source.renderer("3d_fulres")


def test_a_volume_that_is_cut_off(planned: dict[str, str], tmp_path: Path) -> None:
    source = source_of(planned["3d"])
    path = tmp_path / f"{CASE}.nii.gz"
    path.write_bytes(source.files().labels.read_bytes()[:-40])
    with pytest.raises(ImageError, match=rf"{CASE}.nii.gz"):
        source.renderer("3d_fullres").pictures(source.files(folder=tmp_path))
    write_image(path, np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(ImageError, match=rf"{CASE}.nii.gz: cannot be laid over"):
        source.renderer("3d_fullres").pictures(source.files(folder=tmp_path))


def test_files_of_cases(planned: dict[str, str], tmp_path: Path) -> None:
    source = source_of(planned["2d"])
    images = source.images()
    assert set(images) == {f"S{s}_c{c}" for s in range(4) for c in range(2)} | {"T0_c0", "T0_c1"} | {
        f"P0_c{c}" for c in range(4)
    }
    assert label_maps(source.raw / "labelsTr", ".png") == [f"S{s}_c{c}" for s in range(4) for c in range(2)]
    assert label_maps(tmp_path / "nowhere", ".png") == []
    write_tiny(tmp_path / "X1.png", np.zeros((4, 4), np.uint8))
    for cases, text in (
        (["X1"], 'no image of the case "X1"'),
        (["S0_c0"], "S0_c0.png: not found"),
        ([], "no label map"),
    ):
        with pytest.raises(DatasetError, match=text):
            case_files_of(cases, tmp_path, images, {}, ".png")
    with pytest.raises(DatasetError, match="none of its folders holds an image"):
        dataset_images(tmp_path, source.dataset_json)
