from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.io import loadmat

from nnunet_qa.data.phantoms import SubjectLook, draw_bscan, second_opinion, write_chiu, write_ocsc


def look(severity: float = 1.0, seed: int = 0) -> SubjectLook:
    return SubjectLook.draw(np.random.default_rng(seed), severity=severity)


def fluid_part(severity: float, position: float = 0.0) -> float:
    rng = np.random.default_rng(5)
    drawn = [draw_bscan(rng, look=look(severity), position=position, rows=124, columns=192) for _ in range(5)]
    return float(np.mean([bscan.fluid > 0 for bscan in drawn]))


def test_the_same_generator_gives_the_same_bscan() -> None:
    first, second = (draw_bscan(np.random.default_rng(3), look=look(), rows=64, columns=96) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.fluid, second.fluid)
    other = draw_bscan(np.random.default_rng(4), look=look(), rows=64, columns=96)
    assert (first.image != other.image).any()


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 96), (496, 768)])
def test_shapes_types_and_layers_in_order(rows: int, columns: int) -> None:
    bscan = draw_bscan(np.random.default_rng(0), look=look(), rows=rows, columns=columns)
    assert bscan.image.shape == bscan.fluid.shape == (rows, columns)
    assert bscan.image.dtype == bscan.fluid.dtype == np.uint8
    assert bscan.layers.shape == (8, columns)
    assert (np.diff(bscan.layers, axis=0) >= 0).all()


def test_severity_and_position_decide_how_much_fluid() -> None:
    assert fluid_part(0.0) == 0
    assert 0 < fluid_part(0.3) < fluid_part(1.0)
    assert fluid_part(1.0, position=1.0) < fluid_part(1.0) / 3


def test_fluid_lies_within_the_retina_and_is_darker_than_its_surroundings() -> None:
    darker = []
    for seed in range(8):
        bscan = draw_bscan(np.random.default_rng(seed), look=look(seed=seed), padding=False, rows=248, columns=384)
        fluid = bscan.fluid > 0
        row = np.arange(248)[:, None] + 0.5
        assert (fluid <= ((row > bscan.layers[0]) & (row < bscan.layers[-1]))).all()
        ring = ndimage.binary_dilation(fluid, iterations=4) & ~fluid
        darker.append(bscan.image[fluid].mean() / bscan.image[ring].mean())
    assert max(darker) < 0.9
    # not trivial: tissue of the retina is often as dark as fluid, so no threshold alone separates them
    retina = (row > bscan.layers[0]) & (row < bscan.layers[-1]) & ~fluid
    assert (bscan.image[retina] < np.median(bscan.image[fluid])).mean() > 0.03


def test_white_is_padding_only() -> None:
    without = draw_bscan(np.random.default_rng(2), look=look(), rows=64, columns=96, padding=False)
    assert without.image.max() < 255
    padded = [draw_bscan(np.random.default_rng(seed), look=look(), rows=64, columns=96) for seed in range(6)]
    assert any((bscan.image == 255).any() for bscan in padded)
    assert not any((bscan.image[bscan.fluid > 0] == 255).any() for bscan in padded)


def test_subjects_differ() -> None:
    rng = np.random.default_rng(0)
    looks = [SubjectLook.draw(rng) for _ in range(4)]
    assert len({one.contrast for one in looks}) == len({one.severity for one in looks}) == 4


def test_the_second_opinion_agrees_partly() -> None:
    bscan = draw_bscan(np.random.default_rng(1), look=look(), rows=248, columns=384)
    other = second_opinion(np.random.default_rng(1), bscan.fluid) > 0
    first = bscan.fluid > 0
    dice = 2 * (first & other).sum() / (first.sum() + other.sum())
    assert 0.5 < dice < 0.999


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="severity 2"):
        SubjectLook.draw(np.random.default_rng(0), severity=2)
    with pytest.raises(ValueError, match="too small"):
        draw_bscan(np.random.default_rng(0), look=look(), rows=16)
    with pytest.raises(ValueError, match="9 annotated"):
        write_chiu(tmp_path, np.random.default_rng(0), annotated=9, bscans=8)


def test_chiu_layout(tmp_path: Path) -> None:
    paths = write_chiu(
        tmp_path, np.random.default_rng(0), subjects=2, rows=64, columns=96, bscans=9, annotated=4, severity=1.0
    )
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "2015_BOE_Chiu/Subject_01.mat",
        "2015_BOE_Chiu/Subject_02.mat",
    ]
    content = loadmat(paths[0])
    volumes = ("images", "manualFluid1", "manualFluid2", "automaticFluidDME")
    layers = ("manualLayers1", "manualLayers2", "automaticLayersDME", "automaticLayersNormal")
    assert {key for key in content if not key.startswith("__")} == {*volumes, *layers}
    assert {content[key].shape for key in volumes} == {(64, 96, 9)}
    assert {content[key].shape for key in layers} == {(8, 96, 9)}
    for key in ("manualFluid1", "manualFluid2"):
        missing = np.isnan(content[key])
        assert (missing.all(axis=(0, 1)) == missing.any(axis=(0, 1))).all()
        assert (~missing.all(axis=(0, 1))).sum() == 4
    assert np.nanmax(content["manualFluid1"]) > 1  # numbered regions
    assert not np.isnan(content["automaticFluidDME"]).any()
    assert np.nansum(content["manualFluid1"] > 0) != np.nansum(content["manualFluid2"] > 0)


def test_ocsc_layout(tmp_path: Path) -> None:
    write_ocsc(
        tmp_path,
        np.random.default_rng(0),
        stacks=["nidek_2"],
        train=5,
        annotated=3,
        test=2,
        rows=64,
        columns=96,
        graders=("G1", "G2", "G3"),
        ending=".tif",
        severity=1.0,
    )
    train = tmp_path / "nidek_2" / "train"
    assert sorted(path.name for path in (train / "Image").iterdir()) == [f"bscan_{k}.tif" for k in range(1, 6)]
    assert len(list((train / "GT" / "G1").iterdir())) == 3
    assert len(list((tmp_path / "nidek_2" / "test" / "GT" / "G2").iterdir())) == 2
    name = next((train / "GT" / "G1").iterdir()).name
    masks = {grader: np.asarray(Image.open(train / "GT" / grader / name)) for grader in ("G1", "G2", "G3")}
    assert set(np.unique(masks["G1"])) <= {0, 255}
    np.testing.assert_array_equal(masks["G3"], np.minimum(masks["G1"], masks["G2"]))


def test_ocsc_without_graders_and_test(tmp_path: Path) -> None:
    write_ocsc(
        tmp_path, np.random.default_rng(0), stacks=["cirrus_1"], train=2, annotated=1, test=0, rows=64, columns=64
    )
    assert len(list((tmp_path / "cirrus_1" / "train" / "GT").glob("*.png"))) == 1
    assert not (tmp_path / "cirrus_1" / "test").exists()
