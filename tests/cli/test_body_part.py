from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import Result

from nnunet_qa.cli import body_part
from nnunet_qa.data import images
from nnunet_qa.data.images import read_volume, write_image
from nnunet_qa.errors import DatasetError, ImageError, ModelError, NnunetQAError, SelectionError
from nnunet_qa.quality import slabs
from nnunet_qa.quality.body_part_file import load
from tests.body import draw_body, one_thread, turned, write_bodies
from tests.small import run_command

SMALL = ("--steps", 60, "--size", 16, "--window", "-175,275", "-device", "cpu", "--jobs", 1)
GRID = ("--spacing", "8,8,10", "--size", "20,24,16", "--jobs", 1)


def run(command: str, *arguments: object) -> Result:
    return run_command(body_part, "body-part", command, *arguments)


def failed(command: str, *arguments: object) -> NnunetQAError:
    error = run(command, *arguments).exception
    assert isinstance(error, NnunetQAError), error
    assert "\n" not in str(error)
    return error


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scans in `train`, a model of them, and three others in `new` with their labels."""
    folder = tmp_path_factory.mktemp("bodies")
    write_bodies(folder / "train", 5)
    write_bodies(folder / "new", 3, seed=1, suffix="_0000", labels=folder / "labels")
    result = run("fit", "-i", folder / "train", "-o", folder / "body_part.pt", *SMALL)
    assert result.exit_code == 0, result.exception
    assert "Scale: -12 and 12 are the medians" in result.stderr
    assert not list(folder.glob("*.state"))
    return folder


def test_scores_of_every_slice(base: Path, tmp_path: Path) -> None:
    result = run(
        "score", "-i", base / "new", "-m", base / "body_part.pt", "-o", tmp_path, "-device", "cpu", "--jobs", 2
    )
    assert result.exit_code == 0, result.exception
    table = pd.read_csv(tmp_path / "body_part.csv")
    assert list(table.columns) == ["case_id", "slice_index", "position_mm", "score"]
    assert table["case_id"].unique().tolist() == ["c0", "c1", "c2"]
    first = table[table["case_id"] == "c1"]
    assert first["slice_index"].tolist() == list(range(40))
    assert first["position_mm"].tolist() == [500 - 30 - 5 * k for k in range(40)]
    scans = pd.read_csv(tmp_path / "body_part_scans.csv")
    assert (scans["spearman"] > 0.95).all()
    assert Image.open(tmp_path / "body_part.png").size[0] > 600
    assert "c2" in result.stdout
    assert "fall where they should grow" not in result.stderr


def test_a_scan_that_is_upside_down_is_named(base: Path, tmp_path: Path) -> None:
    array, geometry = draw_body(np.random.default_rng(3), top=30)
    write_image(tmp_path / "scans" / "good.nii.gz", array, geometry)
    write_image(tmp_path / "scans" / "wrong.nii.gz", array[::-1], geometry)
    result = run(
        "score", "-i", tmp_path / "scans", "-m", base / "body_part.pt", "-o", tmp_path / "out", "-device", "cpu"
    )
    assert '"wrong" fall where they should grow: is its direction wrong' in result.stderr
    assert '"good"' not in result.stderr


def test_the_same_part_of_every_scan(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "slabs"
    arguments = ("-i", base / "new", "-m", base / "body_part.pt", "-o", output, "--labels", base / "labels", *GRID)
    result = run("extract", *arguments, "--from", -6, "--to", 6)
    assert result.exit_code == 0, result.exception
    assert "Wrote 3 slabs of 3 scans" in result.stderr
    table = pd.read_csv(output / "slabs.csv")
    # The standard scale of the training scans: −12 at 30 mm, 12 at 225 mm below the crown, at z = 500.
    assert table["from_mm"].tolist() == pytest.approx([500 - 79] * 3, abs=20)
    assert table["to_mm"].tolist() == pytest.approx([500 - 176] * 3, abs=20)
    assert (table["covered"] == 1).all()
    for number, row in enumerate(table.itertuples()):
        image, where = read_volume(output / "images" / f"c{number}_0000.nii.gz")
        label, label_where = read_volume(output / "labels" / f"c{number}.nii.gz")
        assert image.shape == label.shape == (16, 24, 20)
        assert where.spacing == pytest.approx((8, 8, 10))
        assert where == label_where
        filled = image.reshape(16, -1).max(axis=1) > -900
        assert filled.sum() == row.slices == pytest.approx(abs(row.to_mm - row.from_mm) / 10, abs=1.1)
        heights = where.origin[2] + 10 * np.arange(16)  # LPS: slices run to the head
        assert ((heights[filled] <= row.from_mm) & (heights[filled] >= row.to_mm)).all()
        # what is denser than water in the image is what the label map marks, but for voxels at the border
        assert 2 * ((image > 100) & (label > 0)).sum() / ((image > 100).sum() + (label > 0).sum()) > 0.9


def test_a_second_run_goes_on(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("-i", base / "new", "-m", base / "body_part.pt", "-o", tmp_path / "slabs", *GRID)
    written: list[str] = []
    write = images.write_image

    def killed(path: Path, *rest: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(slabs, "write_image", killed)
    assert run("extract", *arguments).exit_code != 0
    assert written == ["c0_0000.nii.gz", "c1_0000.nii.gz"]
    monkeypatch.setattr(slabs, "write_image", lambda path, *rest: (written.append(path.name), write(path, *rest)))
    assert run("extract", *arguments).exit_code == 0
    assert written[2:] == ["c2_0000.nii.gz"]
    assert len(pd.read_csv(tmp_path / "slabs" / "slabs.csv")) == 3
    assert run("extract", *arguments).exit_code == 0
    assert len(written) == 3
    assert run("extract", *arguments, "--labels", base / "labels").exit_code == 0  # labels are missing, so once more
    assert len(written) == 9
    assert 'slabs made with "from" -6.0, not -5.0' in str(failed("extract", *arguments, "--from", -5))
    assert run("extract", *arguments, "--from", -5, "--overwrite").exit_code == 0
    assert not (tmp_path / "slabs" / "labels").exists()
    assert json.loads((tmp_path / "slabs" / "slabs.json").read_text())["from"] == -5


def test_scans_without_the_range_are_left_out_and_named(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "new", tmp_path / "scans")
    array, geometry = draw_body(np.random.default_rng(5), top=0)
    write_image(tmp_path / "scans" / "head_0000.nii.gz", array[:12], geometry)
    write_image(tmp_path / "scans" / "neck_0000.nii.gz", array[:24], geometry)
    write_image(tmp_path / "scans" / "padding_0000.nii.gz", np.zeros_like(array), geometry)
    arguments = ("-i", tmp_path / "scans", "-m", base / "body_part.pt", *GRID)
    result = run("extract", *arguments, "-o", tmp_path / "slabs")
    assert result.exit_code == 0, result.exception
    assert "head is left out: nothing of it lies between the scores -6 and 6" in result.stderr
    assert "neck is left out: only" in result.stderr
    assert "padding is left out: every slice is empty" in result.stderr
    assert "Wrote 3 slabs of 6 scans" in result.stderr
    table = pd.read_csv(tmp_path / "slabs" / "slabs.csv").set_index("case_id")
    assert table.loc[["head", "neck", "padding"], "left_out"].notna().all()
    assert sorted(path.name[:2] for path in (tmp_path / "slabs" / "images").iterdir()) == ["c0", "c1", "c2"]
    result = run("extract", *arguments, "-o", tmp_path / "more", "--min-covered", 0.1)
    assert (tmp_path / "more" / "images" / "neck_0000.nii.gz").is_file(), result.exception


def test_slabs_that_are_too_long_are_cut(base: Path, tmp_path: Path) -> None:
    grid = ("--spacing", "8,8,10", "--size", "20,24,4", "--jobs", 1)
    result = run("extract", "-i", base / "new", "-m", base / "body_part.pt", "-o", tmp_path / "slabs", *grid)
    assert "3 slabs are longer than 4 slices of 10 mm: cut at both ends" in result.stderr
    assert pd.read_csv(tmp_path / "slabs" / "slabs.csv")["slices"].tolist() == [4, 4, 4]


def test_all_channels_and_any_orientation(base: Path, tmp_path: Path) -> None:
    array, geometry = draw_body(np.random.default_rng(6), top=30)
    for case, orientation in (("a", "LPI"), ("b", "SAR")):
        for channel in (0, 1):
            stored = turned((array + channel * 50).astype(np.int16), geometry, orientation)
            write_image(tmp_path / "scans" / f"{case}_{channel:04d}.nii.gz", *stored)
    output = tmp_path / "slabs"
    result = run("extract", "-i", tmp_path / "scans", "-m", base / "body_part.pt", "-o", output, *GRID)
    assert result.exit_code == 0, result.exception
    a, b, second = (read_volume(output / "images" / f"{name}.nii.gz") for name in ("a_0000", "b_0000", "a_0001"))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_allclose(a[1].origin, b[1].origin, atol=1e-3)
    inside = a[0] != -1024  # the background
    assert inside.mean() > 0.3
    np.testing.assert_array_equal(second[0][inside], a[0][inside] + 50)


def test_landmarks(base: Path, tmp_path: Path) -> None:
    marks = [f"c{number},{index},{score}" for number in range(5) for index, score in ((10, 0), (30, 100))]
    (tmp_path / "marks.csv").write_text("\n".join(["case_id,slice_index,score", *marks]))
    model = tmp_path / "marked.pt"
    result = run("fit", "-i", base / "train", "-o", model, *SMALL, "--landmarks", tmp_path / "marks.csv", "--seed", 1)
    assert result.exit_code == 0, result.exception
    assert "10 landmarks with the scores 0, 100" in result.stderr
    assert load(model).seed == 1
    assert load(base / "body_part.pt").seed == 0


def test_a_model_is_not_replaced_by_mistake(base: Path, tmp_path: Path) -> None:
    model = shutil.copy(base / "body_part.pt", tmp_path)
    short = ("-i", base / "train", "-o", model, *SMALL, "--steps", 2)
    assert "is there already" in str(failed("fit", *short))
    assert run("fit", *short, "--overwrite").exit_code == 0
    assert load(model).steps == 2


def test_mistakes_in_the_options(base: Path, tmp_path: Path) -> None:
    model, out = base / "body_part.pt", tmp_path / "out"
    fit = ("fit", "-i", base / "train", "-o", tmp_path / "new.pt")
    extract = ("extract", "-i", base / "new", "-m", model, "-o", out)
    for arguments, kind, said in (
        ((*fit[:4], tmp_path / "new.txt"), ModelError, "ends in .pt"),
        ((*fit, "--axis", "w"), SelectionError, "must be one of z, y, x"),
        ((*fit, "--window", "275,-175"), SelectionError, "must be lower than the second"),
        ((*fit, "--window", "3"), SelectionError, '--window "3": must be 2 numbers'),
        ((*fit, "--window", "1,nan"), SelectionError, "must be 2 numbers"),
        ((*fit, "--landmarks", tmp_path / "none.csv"), SelectionError, "none.csv: not found"),
        (("fit", "-i", tmp_path / "none", *fit[3:]), DatasetError, "none: no such folder"),
        ((*extract, "--from", 6, "--to", -6), SelectionError, "from a lower score to a higher one, not from 6"),
        ((*extract, "--from", 6, "--to", 6), SelectionError, "from a lower score"),
        ((*extract, "--from", "nan"), SelectionError, "from a lower score"),
        ((*extract, "--size", "8,8"), SelectionError, "must be 3 numbers"),
        ((*extract, "--size", "8,8,8.5"), SelectionError, "whole numbers"),
        ((*extract, "--size", "8,8,0"), SelectionError, "must be above 0"),
        ((*extract, "--spacing", "2,-2,6"), SelectionError, "must be above 0"),
        ((*extract, "--from", 500, "--to", 600, "--jobs", 1), SelectionError, "no scan holds enough of the scores 500"),
        ((*extract[:4], tmp_path / "none.pt", *extract[5:]), ModelError, "none.pt: cannot be read"),
        ((*extract[:4], base / "body_part.json", *extract[5:]), ModelError, "body_part.json: is damaged"),
        (("score", *extract[1:4], base / "body_part.json", "-o", out), ModelError, "body_part.json: is damaged"),
        ((*extract, "--labels", tmp_path), DatasetError, "c0.nii.gz: not found; with --labels every image needs"),
        ((*extract[:-1], base), DatasetError, "is not empty and holds no slabs.json"),
    ):
        error = failed(*arguments)
        assert isinstance(error, kind), (arguments, error)
        assert said in str(error)


def test_scans_that_cannot_be_used(base: Path, tmp_path: Path) -> None:
    array, geometry = draw_body(np.random.default_rng(5), top=0)
    bad = array.astype(np.float32)
    bad[3, 4, 5] = np.nan
    write_image(tmp_path / "nan" / "a.nii.gz", bad, geometry)
    write_image(tmp_path / "flat" / "a.png", np.zeros((20, 20), np.uint8))
    write_image(tmp_path / "cut" / "a.nii.gz", array, geometry)
    whole = (tmp_path / "cut" / "a.nii.gz").read_bytes()
    (tmp_path / "cut" / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    for folder, said in (("nan", "1 intensities are NaN"), ("flat", "is no volume"), ("cut", "a.nii.gz: ")):
        model, out = base / "body_part.pt", tmp_path / "out" / folder
        for command in (
            ("fit", "-i", tmp_path / folder, "-o", tmp_path / "new.pt", "-device", "cpu", "--jobs", 1),
            ("score", "-i", tmp_path / folder, "-m", model, "-o", out, "-device", "cpu", "--jobs", 1),
            ("extract", "-i", tmp_path / folder, "-m", model, "-o", out, "--jobs", 1),
        ):
            error = failed(*command)
            assert isinstance(error, ImageError), error
            assert said in str(error)
            assert str(tmp_path / folder) in str(error)


def test_a_label_map_on_another_grid(base: Path, tmp_path: Path) -> None:
    array, geometry = draw_body(np.random.default_rng(5), top=30)
    write_image(tmp_path / "scans" / "a.nii.gz", array, geometry)
    extract = ("extract", "-i", tmp_path / "scans", "-m", base / "body_part.pt", "--labels", tmp_path / "labels", *GRID)
    for label, where, said in (
        (array[1:], geometry, "the mask has shape (39, 32, 32)"),
        (array, turned(array, geometry, "LPS")[1], "a.nii.gz: has origin"),
    ):
        write_image(tmp_path / "labels" / "a.nii.gz", (label > 100).astype(np.uint8), where)
        assert said in str(failed(*extract, "-o", tmp_path / said[:3]))
