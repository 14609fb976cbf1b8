from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nnunet_qa.quality.image_quality import Definition
from nnunet_qa.reports.initial_set import initial_set_picture
from nnunet_qa.selection.initial import initial_set
from tests.selection.test_initial import many


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: object, **settings: object) -> None:
        figures.append(figure)
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def points(figure: Figure) -> dict[str, np.ndarray]:
    return {group.get_label(): np.asarray(group.get_offsets()) for group in figure.axes[0].collections}


def rows(table: pd.DataFrame) -> np.ndarray:
    return table[["blurriness", "psnr_inv"]].to_numpy()


def test_every_image_is_drawn_once_in_its_group(tmp_path: Path, drawn: list[Figure]) -> None:
    table = initial_set(many(60), target_size=5)
    path = initial_set_picture(tmp_path / "s0.png", table, heading="Phantoms")
    assert Image.open(path).size[0] > 600
    alike = table[table["reason"].str.startswith("dropped: within")]
    failed = table[table["reason"].str.contains("not below")]
    found = points(drawn[0])
    assert list(found) == [
        f"outside the thresholds ({len(failed)})",
        f"inside, like a sharper one ({len(alike)})",
        "initial set (5)",
    ]
    for group, expected in zip(found.values(), (failed, alike, table[table["selected"]]), strict=True):
        np.testing.assert_allclose(group, rows(expected))
    axes = drawn[0].axes[0]
    assert axes.get_title().startswith("Phantoms\n5 of 60 images selected")
    assert axes.get_xscale() == axes.get_yscale() == "log"


@pytest.mark.parametrize("definition", Definition)
def test_the_shaded_part_holds_what_passed_and_nothing_else(
    tmp_path: Path, drawn: list[Figure], definition: Definition
) -> None:
    table = initial_set(many(60), definition=definition)
    initial_set_picture(tmp_path / "s0.png", table, definition=definition)
    (patch,) = drawn[0].axes[0].patches
    inside = [patch.get_bbox().contains(*point) for point in rows(table)]
    assert inside == (table["selected"] | table["reason"].str.startswith("dropped: within")).tolist()
    lines = drawn[0].axes[0].lines
    assert len(lines) == (2 if definition is Definition.PAPER else 4)
    assert lines[0].get_xdata()[0] in table[["blurriness_lowest", "blurriness_highest"]].to_numpy()


def test_a_narrow_range_has_linear_axes(tmp_path: Path, drawn: list[Figure]) -> None:
    table = many(30)
    table[["blurriness", "psnr_inv"]] = 5 + np.tanh(table[["blurriness", "psnr_inv"]])
    initial_set_picture(tmp_path / "s0.png", initial_set(table))
    assert drawn[0].axes[0].get_xscale() == drawn[0].axes[0].get_yscale() == "linear"
