from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.errors import SelectionError
from nnunet_qa.quality.table import read_quality, write_quality

ROWS = [
    {"case_id": "007", "role": "", "level": "slice", "slice_axis": 0, "slice_index": 1, "q": 0.25, "q_fluid": 0.25},
    {
        "case_id": "007",
        "role": "",
        "level": "case",
        "slice_axis": None,
        "slice_index": None,
        "q": 1 / 3,
        "q_fluid": 0.5,
    },
    {"case_id": "001", "role": "test", "level": "case", "slice_axis": None, "slice_index": None, "q": 1, "q_fluid": 1},
    {"case_id": "007", "role": "", "level": "slice", "slice_axis": 0, "slice_index": 0, "q": 0.75, "q_fluid": 0.75},
]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_quality(tmp_path / "quality.csv", pd.DataFrame(ROWS))
    lines = (tmp_path / "quality.csv").read_text().splitlines()
    assert lines[0] == "case_id,role,level,slice_axis,slice_index,q,q_fluid"
    assert lines[2] == "007,,case,,,0.333333,0.5"
    cases = read_quality(tmp_path / "quality.csv")
    assert cases["case_id"].tolist() == ["001", "007"]
    assert cases["role"].tolist() == ["test", ""]
    assert read_quality(tmp_path / "quality.csv", "slice")["slice_index"].tolist() == [0, 1]


def test_further_columns_are_kept_and_may_be_missing(tmp_path: Path) -> None:
    write_quality(tmp_path / "old.csv", pd.DataFrame(ROWS))
    assert "union_voxels" not in read_quality(tmp_path / "old.csv")
    further = {"union_voxels": 12, "disagreeing_voxels": 9, "entropy": 0.1234567}
    write_quality(tmp_path / "new.csv", pd.DataFrame([{**row, **further} for row in ROWS]))
    for level in ("case", "slice"):
        table = read_quality(tmp_path / "new.csv", level)  # type: ignore[arg-type]
        assert table["union_voxels"].tolist() == [12, 12]
        assert table["disagreeing_voxels"].tolist() == [9, 9]
        assert table["entropy"].tolist() == [0.123457] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a CSV file"),
        ("case_id,role,level,slice_axis,slice_index\n", 'the column "q" is missing'),
        ("case_id,role,level,slice_axis,slice_index,q\n", "holds no row of level case"),
        ("case_id,role,level,slice_axis,slice_index,q\nA,,case,,,1.5\n", 'the case "A" has q = 1.5'),
        ("case_id,role,level,slice_axis,slice_index,q\nA,,case,,,\n", "which is not between 0 and 1"),
        ("case_id,role,level,slice_axis,slice_index,q\nA,,case,,,1\nA,,case,,,1\n", 'the case "A" stands there more'),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "quality.csv").write_text(text)
    with pytest.raises(SelectionError, match=message) as caught:
        read_quality(tmp_path / "quality.csv")
    assert str(tmp_path / "quality.csv") in str(caught.value)


def test_a_missing_table_says_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="`nnunet-qa score` or a QA training writes it"):
        read_quality(tmp_path / "quality.csv")


def test_a_table_without_its_columns_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slice_axis"):
        write_quality(tmp_path / "quality.csv", pd.DataFrame([{"case_id": "A", "q": 1}]))
