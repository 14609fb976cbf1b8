"""The commands of docs/body-part.md, one after the other as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cli import body_part
from nnunet_qa.data.images import read_volume
from nnunet_qa.quality.body_part_file import load
from tests.body import one_thread, write_bodies
from tests.small import run_command

PAGE = Path(__file__).parents[2] / "docs" / "body-part.md"
MORE = {
    "fit": ("--steps", "40", "--size", "16", "-device", "cpu", "--jobs", "1"),
    "score": ("-device", "cpu", "--jobs", "1"),
    "extract": ("--jobs", "1"),
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if not line.startswith("pytest")]


def test_every_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bodies(Path("imagesUn"), 5, suffix="_0000")
    write_bodies(Path("imagesTr"), 2, seed=1, suffix="_0000", labels=Path("labelsTr"))
    Path("landmarks.csv").write_text("case_id,slice_index,score\nc0,10,-12\nc0,30,12\n")
    for tool, group, command, *arguments in commands():
        assert (tool, group) == ("nnunet-qa", "body-part")
        with one_thread():
            result = run_command(body_part, group, command, *arguments, *MORE[command])
        assert result.exit_code == 0, (arguments, result.exception)
    assert load(Path("body_part.pt")).scale_.meaning.startswith("-12 and 12 are the medians")
    assert load(Path("marked.pt")).scale_.meaning.startswith("least squares line through 2 landmarks")
    assert load(Path("body_part.pt")).spec.window == (-175, 275)
    assert len(pd.read_csv("scores/body_part.csv")) == 80
    assert Path("scores/body_part.png").is_file()
    assert len(pd.read_csv("scores/body_part_scans.csv")) == 2
    for path in ("slabs/images/c0_0000.nii.gz", "slabs/labels/c1.nii.gz"):
        slab, where = read_volume(Path(path))
        assert slab.shape == (64, 168, 168)
        assert where.spacing == pytest.approx((2, 2, 6))
