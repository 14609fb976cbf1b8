from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from nnunet_qa.cases import CaseTable
from nnunet_qa.config import LabelledLoss, QAConfig
from nnunet_qa.data.partial_labels import check_declared, labelled_classes
from nnunet_qa.errors import CaseTableError, DatasetError
from tests.small import tiny_dataset, write_tiny

NAMES = ("liver", "spleen", "kidney")
PAGE = Path(__file__).parents[2] / "docs" / "partial-labels.md"


def table(**cells: str | None) -> CaseTable:
    return CaseTable.from_rows(
        [{"case_id": case, "role": "labelled", "labelled_classes": cell} for case, cell in cells.items()]
    )


def declared(**cases: object) -> dict[str, object]:
    return {"labelled_classes": cases}


PLAIN = CaseTable.from_rows([{"case_id": case, "role": "labelled"} for case in "abc"])


@pytest.mark.parametrize(
    ("dataset_json", "case_table", "expected"),
    [
        ({}, None, None),
        ({}, PLAIN, None),
        ({}, table(a="", b=None), None),
        (declared(), PLAIN, None),
        ({}, table(a="kidney; liver", b="", c="spleen;"), {"a": (True, False, True), "c": (False, True, False)}),
        (declared(a=["spleen"]), None, {"a": (False, True, False)}),
        (declared(a=list(NAMES)), PLAIN, {"a": (True, True, True)}),
        # both, and they agree: an empty cell is what a case left out of dataset.json is
        (declared(a=["liver"], c=list(NAMES)), table(a="liver", b="", c=""), {"a": (True, False, False)}),
        (declared(), table(a="liver"), {"a": (True, False, False)}),
    ],
)
def test_what_is_declared(dataset_json: dict, case_table: CaseTable | None, expected: dict | None) -> None:
    assert labelled_classes(dataset_json, case_table, NAMES) == expected


def test_the_table_on_disk(tmp_path: Path) -> None:
    table(a="liver;kidney", b="").write(tmp_path / "cases.csv")
    read = CaseTable.read(tmp_path / "cases.csv")
    assert labelled_classes({}, read, NAMES) == {"a": (True, False, True)}


@pytest.mark.parametrize(
    ("dataset_json", "case_table", "error", "said"),
    [
        (
            {},
            table(a="liver;splen"),
            CaseTableError,
            'cases.csv: the case "a" declares the unknown class "splen" in labelled_classes (did you mean "spleen"?); '
            "classes are liver, spleen, kidney",
        ),
        ({}, table(a="background"), CaseTableError, 'unknown class "background"'),
        (declared(a=["Liver"]), None, DatasetError, 'dataset.json: the case "a" declares the unknown class "Liver"'),
        (
            declared(case_1=["liver"]),
            table(case_01=""),
            DatasetError,
            '"labelled_classes" names the case "case_1", not in cases.csv (did you mean "case_01"?)',
        ),
        (
            declared(a=["liver"]),
            table(a="liver;spleen"),
            CaseTableError,
            'cases.csv: the case "a" labels liver, spleen, but liver in "labelled_classes" of dataset.json; ',
        ),
        (
            declared(a=["liver"]),
            table(a="liver", b="kidney"),
            CaseTableError,
            'the case "b" labels kidney, but liver, ',
        ),
        (declared(a=["liver"]), table(a="", b="kidney"), CaseTableError, 'the case "a" labels liver, spleen, kidney, '),
        (declared(a=[]), None, DatasetError, 'lists no class for "a"; leave out cases that label all'),
        (declared(a="liver"), None, DatasetError, "list of class names for each case, found 'liver' for \"a\""),
        (declared(a=[1]), None, DatasetError, "list of class names for each case, found [1]"),
        ({"labelled_classes": ["a"]}, None, DatasetError, "must be an object with a list of class names"),
    ],
)
def test_what_is_refused(dataset_json: dict, case_table: CaseTable | None, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        labelled_classes(dataset_json, case_table, NAMES)


def dataset(base: Path, labels: dict[str, object], **values: list[int]) -> tuple[Path, dict]:
    """A raw dataset whose labels hold the background and the given values, by case."""
    folder = tiny_dataset(base, labelled=tuple(values), pool=("u",), labels=labels)
    for case, some in values.items():
        write_tiny(folder / "labelsTr" / f"{case}.png", np.resize([0, *some], (6, 8)).astype(np.uint8))
    return folder, json.loads((folder / "dataset.json").read_text())


def test_labels_hold_only_what_their_case_declares(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3, "ignore": 4}
    folder, content = dataset(tmp_path, labels, a=[1, 4], b=[1, 3], c=[1, 2, 3])
    only_liver, two = (True, False, False), (True, False, True)
    check_declared(folder, content, {"a": only_liver, "b": two, "u": only_liver}, NAMES)
    with pytest.raises(
        DatasetError,
        match=re.escape(
            f'{folder}/labelsTr/b.png: holds the label 3 ("kidney"), but its case declares only liver; add "kidney" to '
            "its labelled_classes or take it out of the label"
        ),
    ):
        check_declared(folder, content, {"a": only_liver, "b": only_liver}, NAMES)
    with pytest.raises(DatasetError, match=r'the case "d" declares its labelled_classes, but has no image there'):
        check_declared(folder, content, {"d": two}, NAMES)
    # also where dataset.json says where the labels are
    content["dataset"] = {"x": {"images": ["imagesTr/a_0000.png"], "label": "labelsTr/c.png"}}
    with pytest.raises(
        DatasetError, match=r'c\.png: holds the label 2 \("spleen"\), but its case declares only liver, k'
    ):
        check_declared(folder, content, {"x": two}, NAMES)
    assert content["dataset"]["x"]["label"] == "labelsTr/c.png"


def test_regions_share_labels(tmp_path: Path) -> None:
    folder, content = dataset(tmp_path, {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}, a=[1, 2, 3])
    names = ("whole", "core", "tip")
    check_declared(folder, content, {"a": (True, False, False)}, names)
    with pytest.raises(DatasetError, match=r'holds the label 1 \("whole"\), but its case declares only core'):
        check_declared(folder, content, {"a": (False, True, False)}, names)


def test_the_examples_of_the_page_say_the_same(tmp_path: Path) -> None:
    blocks = dict(re.findall(r"```(csv|json|yaml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    (tmp_path / "cases.csv").write_text(blocks["csv"])
    case_table = CaseTable.read(tmp_path / "cases.csv")
    expected = {"B_001": (True, False, False), "B_002": (True, True, False)}
    assert labelled_classes({}, case_table, NAMES) == expected
    assert labelled_classes(json.loads(blocks["json"]), None, NAMES) == expected
    assert labelled_classes(json.loads(blocks["json"]), case_table, NAMES) == expected
    assert QAConfig.model_validate(yaml.safe_load(blocks["yaml"])) == QAConfig()
    assert all(f"| `{kind.value}` |" in PAGE.read_text(encoding="utf-8") for kind in LabelledLoss)
