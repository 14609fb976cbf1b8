"""`nnunet-qa interact`, and the commands and the Python of docs/interact.md as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from nnunet_qa.cli import interact
from nnunet_qa.data.images import Geometry, read_volume, write_image
from nnunet_qa.errors import ClickError, DatasetError, ModelError, NnunetQAError
from nnunet_qa.inference.interactive_folder import SimulatedUser
from tests.inference.interactive_model import dataset_of, plans_of, write_interactive_model
from tests.small import run_command

PAGE = Path(__file__).parents[2] / "docs" / "interact.md"
GEOMETRY = Geometry((1.0, 1.0, 2.0), (3.0, -4.0, 5.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
SHAPE = (10, 16, 24)
"""Of which a patch holds a whole slice."""


@pytest.fixture
def base(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's model, with random weights, and two of its images with truths and clicks."""
    monkeypatch.chdir(fresh_folders)
    folder = fresh_folders / "nnUNet_results" / "Dataset101_Heart"
    write_interactive_model(folder, plans_of([16, 24], features=(4, 8)), dataset_of())
    rng = np.random.default_rng(0)
    for case in ("T0_c0", "T0_c1"):
        image, truth = rng.normal(size=SHAPE).astype(np.float32), np.zeros(SHAPE, np.uint8)
        truth[7:10, 6:14, 8:22] = 1
        write_image(fresh_folders / "images" / f"{case}_0000.nii.gz", image + 3 * truth, GEOMETRY)
        write_image(fresh_folders / "labels" / f"{case}.nii.gz", truth, GEOMETRY)
    point = {"label": "class1-1", "position": [3 + 20, -4 + 12, 5 + 2 * 8], "positionStatus": "defined"}
    content = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [point]}]}
    (fresh_folders / "clicks").mkdir()
    (fresh_folders / "clicks" / "T0_c0.mrk.json").write_text(json.dumps(content))
    return fresh_folders


def run(*arguments: object) -> Result:
    return run_command(interact, *arguments, "-device", "cpu", "--disable_tta")


def test_the_page(base: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            tool, command, *arguments = shlex.split(os.path.expandvars(line))
            assert (tool, command) == ("nnunet-qa", "interact")
            result = run(*arguments)
            assert result.exit_code == 0, (line, result.exception)
            assert "Wrote the masks and" in result.stderr
    clicks = pd.read_csv("corrected/clicks.csv")
    assert clicks.to_dict("records") == [
        {"case_id": "T0_c0", "round": 1, "label": "class1", "k": 8, "j": 12, "i": 20, "x": 23, "y": 8, "z": 21}
    ]
    assert read_volume(Path("corrected/T0_c1.nii.gz"))[1] == GEOMETRY
    assert not Path("corrected/dice.csv").exists()
    dice = pd.read_csv("simulated/dice.csv")
    assert dice["round"].max() == 3
    assert Path("simulated/dice.png").is_file()
    assert f"{dice[dice['round'] == 0]['dice'].mean():.3f} without clicks" in result.stderr

    (python,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: dict[str, object] = {}
    exec(python, found)
    np.testing.assert_array_equal(found["mask"], found["predictor"].mask)  # type: ignore[attr-defined]
    assert found["predictor"].clicks == []  # type: ignore[attr-defined]
    assert found["changed"].size > 0  # type: ignore[attr-defined]


def test_its_own_table_gives_the_same_masks_and_truths_their_dice(base: Path) -> None:
    run("-i", "images", "-o", "one", "-d", 101, "-c", "2d", "--simulate", "labels", "--number", 1, "--mode", "line")
    same = run("-i", "images", "-o", "two", "-d", 101, "-c", "2d", "--clicks", "one/clicks.csv", "-gt", "labels")
    assert same.exit_code == 0, same.exception
    for case in ("T0_c0", "T0_c1"):
        np.testing.assert_array_equal(*(read_volume(Path(folder, f"{case}.nii.gz"))[0] for folder in ("one", "two")))
    one, two = (pd.read_csv(f"{folder}/dice.csv").groupby("case_id")["dice"].last() for folder in ("one", "two"))
    pd.testing.assert_series_equal(one, two)
    assert (pd.read_csv("one/clicks.csv").groupby("case_id").size() == 3).all()


def test_the_help_states_the_defaults() -> None:
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", run_command(interact, "--help").stdout).split())
    user = SimulatedUser()
    for said in ("Rounds of a simulated user.", "How a simulated user begins: points or line.", "no simulated click."):
        assert said in text
    assert re.findall(r"(?:user|line|click)\. Default: (\w+)\.", text) == [
        str(user.number),
        user.mode.value,
        str(user.least_error),
    ]


def test_mistakes_in_the_options(base: Path) -> None:
    start = ("-i", "images", "-o", "out", "-d", 101, "-c", "2d")
    (base / "clicks" / "T0_c7.csv").write_text("k,j,i,label\n1,2,3,1\n")
    (base / "bad.csv").write_text("case_id,k,j,i,label\nT0_c0,1,2,3,1\nT0_c0,1,2,3,0\n")
    for arguments, kind, said in (
        (start, ClickError, "give either --clicks or --simulate"),
        ((*start, "--clicks", "clicks", "--simulate", "labels"), ClickError, "give either --clicks or --simulate"),
        ((*start, "--simulate", "labels", "-gt", "labels"), ClickError, "-gt goes with --clicks"),
        (
            (*start, "--simulate", "labels", "--mode", "circle"),
            ClickError,
            '--mode "circle": must be one of points, line',
        ),
        (
            (*start, "--clicks", "clicks", "--number", 5, "--least-error", 0),
            ClickError,
            "--number, --least-error: for the user of --simulate",
        ),
        ((*start, "--clicks", "clicks", "--mode", "points"), ClickError, "--mode: for the user of --simulate"),
        ((*start, "--clicks", "out/clicks.csv"), ClickError, "out/clicks.csv: lies in out, whose tables are written"),
        ((*start, "--clicks", "clicks"), ClickError, "T0_c7.csv: holds clicks of the case T0_c7, of which there is no"),
        ((*start, "--clicks", "bad.csv"), ClickError, "bad.csv: line 3: contradicts bad.csv: line 2"),
        ((*start, "--clicks", "none"), ClickError, "none: no clicks there"),
        ((*start, "--simulate", "images"), DatasetError, "images: holds no T0_c0.nii.gz"),
        ((*start, "--simulate", "labels", "-tr", "QAsemiTrainer"), ModelError, "no trained model there"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, kind), (arguments, error)
        assert isinstance(error, NnunetQAError)
        assert said in str(error)
        assert "\n" not in str(error)
