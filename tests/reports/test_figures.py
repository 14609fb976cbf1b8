from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from skimage import io

from nnunet_qa.errors import ImageError, StorageError
from nnunet_qa.reports import figures
from nnunet_qa.reports.figures import Panel, disagreement_picture, panel_title, scatter_q_dice


def square(shape: tuple[int, ...], top: int, left: int, size: int, value: int = 1) -> np.ndarray:
    mask = np.zeros(shape, int)
    mask[..., top : top + size, left : left + size] = value
    return mask


def panel(title: str = "S01_b2  Q=0.43  Dice=0.61", **changes: Any) -> Panel:
    shape = (40, 60)
    entries: dict[str, Any] = {
        "image": np.linspace(0, 1, 2400).reshape(shape),
        "finest": square(shape, 5, 5, 20),
        "second": square(shape, 12, 30, 15),
        "truth": None,
    }
    return Panel(title=title, **{**entries, **changes})


def pixels(path: Path, colour: str) -> int:
    """Number of pixels of the PNG that have nearly the given colour."""
    picture = io.imread(path)[..., :3] / 255
    return int((np.abs(picture - np.array(to_rgb(colour))).max(axis=-1) < 0.08).sum())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, so that a test can look into them."""
    kept: list[Figure] = []
    save = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path))[1])
    return kept


def contours(axes: Any) -> list[tuple[tuple[float, float, float], np.ndarray]]:
    """Colour and extent (left, top, right, bottom) of each contour in a panel."""
    found = []
    for collection in axes.collections:
        points = np.concatenate([path.vertices for path in collection.get_paths()])
        found.append((tuple(collection.get_edgecolor()[0][:3]), np.concatenate([points.min(0), points.max(0)])))
    return found


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_contours_lie_around_the_masks_in_the_colours_of_the_legend(tmp_path: Path, drawn: list[Figure]) -> None:
    path = disagreement_picture(tmp_path / "new" / "a.png", [panel(truth=square((40, 60), 0, 0, 10))], heading="Fold 0")
    found = {colour: extent for colour, extent in contours(drawn[0].axes[0])}
    assert found[to_rgb(figures.FINEST)] == pytest.approx([4.5, 4.5, 24.5, 24.5])
    assert found[to_rgb(figures.SECOND)] == pytest.approx([29.5, 11.5, 44.5, 26.5])
    assert found[to_rgb(figures.TRUTH)] == pytest.approx([-0.5, -0.5, 9.5, 9.5])  # closed at the border
    assert legend_texts(drawn[0]) == ["finest output", "second output", "ground truth"]
    assert drawn[0].axes[0].get_title() == "S01_b2  Q=0.43  Dice=0.61"
    assert drawn[0].get_suptitle() == "Fold 0"
    for colour in (figures.FINEST, figures.SECOND, figures.TRUTH):
        assert pixels(path, colour) > 100
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


def test_without_truth_there_is_none_in_the_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    path = disagreement_picture(tmp_path / "a.png", [panel()])
    assert legend_texts(drawn[0]) == ["finest output", "second output"]
    assert pixels(path, figures.TRUTH) == 0


def test_classes_have_line_styles_and_names(tmp_path: Path, drawn: list[Figure]) -> None:
    both = square((40, 60), 5, 5, 20) + square((40, 60), 28, 30, 10, value=2)
    disagreement_picture(tmp_path / "a.png", [panel(finest=both, second=both)], class_names=["fluid", "drusen"])
    assert legend_texts(drawn[0])[2:] == ["fluid", "drusen"]
    styles = [collection.get_linestyle()[0] for collection in drawn[0].axes[0].collections]
    assert len(styles) == 4
    assert styles[0][1] is None
    assert styles[1][1] is not None
    disagreement_picture(tmp_path / "a.png", [panel(finest=both * 3, second=both)], class_names=["fluid"])
    assert legend_texts(drawn[1])[2:] == ["fluid", "class 2", "class 3", "class 6"]


def test_many_classes_are_all_drawn_solid_and_one_class_needs_no_key(tmp_path: Path, drawn: list[Figure]) -> None:
    many = np.zeros((40, 60), int)
    for value in range(1, 7):
        many[5:30, value * 8 : value * 8 + 6] = value
    disagreement_picture(tmp_path / "a.png", [panel(finest=many, second=many)])
    collections = drawn[0].axes[0].collections
    assert len(collections) == 12
    assert all(collection.get_linestyle()[0][1] is None for collection in collections)
    assert len(legend_texts(drawn[0])) == 2


def test_grid_limit_and_columns(tmp_path: Path, drawn: list[Figure]) -> None:
    panels = [panel(f"c{number}  Q=0.{number}") for number in range(9)]
    disagreement_picture(tmp_path / "a.png", panels, limit=5, columns=3)
    axes = drawn[0].axes
    assert [place.get_title() for place in axes if place.axison] == [f"c{number}  Q=0.{number}" for number in range(5)]
    assert axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 3)
    assert drawn[0].get_suptitle() == "5 of 9 cases"
    disagreement_picture(tmp_path / "a.png", panels)
    assert drawn[1].axes[0].get_subplotspec().get_gridspec().get_geometry() == (3, 4)
    assert drawn[1].get_suptitle() == ""


def test_the_legend_fits_into_a_narrow_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    masks = square((40, 60), 5, 5, 20) + square((40, 60), 28, 30, 10, value=2)
    names = ["intraretinal fluid and more", "subretinal fluid"]
    disagreement_picture(tmp_path / "a.png", [panel(finest=masks, second=masks, truth=masks)], class_names=names)
    extent = drawn[0].legends[0].get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= drawn[0].bbox.x1
    assert extent.y0 >= 0


def test_a_long_title_gets_two_lines(tmp_path: Path, drawn: list[Figure]) -> None:
    disagreement_picture(tmp_path / "a.png", [panel("A_very_long_case_identifier_0017  Q=0.43  Dice=0.61")])
    assert drawn[0].axes[0].get_title() == "A_very_long_case_identifier_0017\nQ=0.43  Dice=0.61"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_of_a_volume(tmp_path: Path, drawn: list[Figure], axis: int) -> None:
    shape = [6, 24, 32]
    shape[0], shape[axis] = shape[axis], shape[0]
    slices = shape[axis]
    finest = np.zeros((slices, *np.delete(shape, axis)), int)
    finest[1:5, 2:6, 2:6] = 1
    second = finest.copy()
    second[3, 2:6, 2:4] = 0
    volume = {
        "image": np.moveaxis(np.arange(slices)[:, None, None] * np.ones_like(finest), 0, axis),
        "finest": np.moveaxis(finest, 0, axis),
        "second": np.moveaxis(second, 0, axis),
    }
    disagreement_picture(tmp_path / "a.png", [panel("c  Q=0.5", **volume, slice_axis=axis)])
    assert drawn[0].axes[0].get_title() == "c  Q=0.5  slice 3"  # where the outputs differ most
    assert (drawn[0].axes[0].images[0].get_array() == 3).all()
    disagreement_picture(tmp_path / "a.png", [panel("c  Q=0.5", **volume, slice_axis=axis, slice_index=4)])
    assert drawn[1].axes[0].get_title() == "c  Q=0.5  slice 4"
    assert dict(contours(drawn[1].axes[0]))[to_rgb(figures.SECOND)] == pytest.approx([1.5, 1.5, 5.5, 5.5])
    agree = {**volume, "second": volume["finest"]}
    disagreement_picture(tmp_path / "a.png", [panel("c  Q=1", **agree, slice_axis=axis)])
    assert drawn[2].axes[0].get_title() == "c  Q=1  slice 1"  # where there is something to see


def test_spacing_is_the_aspect(tmp_path: Path, drawn: list[Figure]) -> None:
    disagreement_picture(tmp_path / "a.png", [panel(spacing=(3.0, 1.5))])
    assert drawn[0].axes[0].get_aspect() == 2.0
    disagreement_picture(tmp_path / "a.png", [panel()])
    assert drawn[0].get_figheight() > drawn[1].get_figheight()


def test_empty_full_constant_and_nan_are_drawn_without_a_warning(tmp_path: Path, recwarn: Any) -> None:
    image = np.full((40, 60), np.nan)
    none, everything = np.zeros((40, 60), int), np.ones((40, 60), int)
    panels = [
        panel(image=image, finest=none, second=none),
        panel(image=np.zeros((40, 60)), finest=everything, second=none),
        panel(image=np.where(np.eye(40, 60) > 0, np.nan, 2.0)),
    ]
    assert disagreement_picture(tmp_path / "a.png", panels).stat().st_size > 0
    assert not recwarn.list


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"second": np.zeros((40, 61), int)}, r"S01_b2.*same shape.*\(40, 60\), \(40, 60\), \(40, 61\)"),
        ({"truth": np.zeros((4, 6), int)}, "same shape"),
        ({name: np.zeros(9, int) for name in ("image", "finest", "second")}, "must have 2 axes, or 3"),
        ({name: np.zeros((2, 9, 9), int) for name in ("image", "finest", "second")} | {"slice_axis": 3}, "slice axis"),
        ({name: np.zeros((2, 9, 9), int) for name in ("image", "finest", "second")} | {"slice_index": 2}, "no slice 2"),
    ],
)
def test_panels_that_cannot_be_drawn(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ImageError, match=said):
        disagreement_picture(tmp_path / "a.png", [panel(**changes)])
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("changes", [{"limit": 0}, {"columns": 0}])
def test_wrong_numbers(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        disagreement_picture(tmp_path / "a.png", [panel()], **changes)
    with pytest.raises(ValueError, match="0 panels"):
        disagreement_picture(tmp_path / "a.png", [])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        disagreement_picture(tmp_path / "file" / "a.png", [panel()])


def test_panel_title() -> None:
    assert panel_title("c", 0.426) == "c  Q=0.43"
    assert panel_title("c", 1.0, dice=float("nan")) == "c  Q=1.00"


def test_no_figure_of_pyplot_is_touched(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    disagreement_picture(tmp_path / "a.png", [panel()])
    scatter_q_dice(tmp_path / "b.png", [0.1, 0.2, 0.3], [0.3, 0.2, 0.4])
    assert plt.get_fignums() == before


def test_scatter_shows_every_case_and_spearman(tmp_path: Path, drawn: list[Figure]) -> None:
    rng = np.random.default_rng(3)
    dice = rng.uniform(size=30)
    q = dice**2 + rng.normal(0, 0.1, 30)
    subjects = [f"S{number % 3}" for number in range(30)]
    path = scatter_q_dice(tmp_path / "s.png", q, dice, subjects=subjects, heading="Fold 0")
    heading, title = drawn[0].axes[0].get_title().splitlines()
    assert heading == "Fold 0"
    assert title == f"Spearman's ρ = {spearmanr(q, dice).statistic:.2f}, 30 cases"
    groups = drawn[0].axes[0].collections
    assert [group.get_label() for group in groups] == ["S0", "S1", "S2"]
    for number, group in enumerate(groups):
        assert np.asarray(group.get_offsets()) == pytest.approx(np.stack([dice, q], axis=1)[number::3])
    assert len({tuple(group.get_facecolor()[0]) for group in groups}) == 3
    assert legend_texts(drawn[0]) == ["S0", "S1", "S2"]
    assert pixels(path, figures._SUBJECTS[1]) > 50


def test_scatter_leaves_out_cases_without_truth(tmp_path: Path, drawn: list[Figure]) -> None:
    scatter_q_dice(tmp_path / "s.png", [0.1, 0.2, 0.3, 0.9], [0.9, 0.8, 0.7, np.nan])
    assert drawn[0].axes[0].get_title() == "Spearman's ρ = −1.00, 3 cases, 1 without Dice or Q"
    assert len(drawn[0].axes[0].collections[0].get_offsets()) == 3
    assert not drawn[0].legends


@pytest.mark.parametrize(
    ("q", "dice", "said"),
    [([0.5], [0.5], "ρ = undefined, 1 case"), ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], "ρ = undefined, 3 cases")],
)
def test_scatter_without_a_correlation(
    tmp_path: Path, drawn: list[Figure], recwarn: Any, q: list[float], dice: list[float], said: str
) -> None:
    scatter_q_dice(tmp_path / "s.png", q, dice)
    assert drawn[0].axes[0].get_title() == f"Spearman's {said}"
    assert not recwarn.list


def test_scatter_of_many_subjects_has_looks_of_their_own_and_no_legend(tmp_path: Path, drawn: list[Figure]) -> None:
    subjects = [f"S{number:02d}" for number in range(49)]
    scatter_q_dice(tmp_path / "s.png", np.linspace(0, 1, 49), np.linspace(0, 1, 49), subjects=subjects)
    groups = drawn[0].axes[0].collections
    looks = {(tuple(group.get_facecolor()[0]), group.get_paths()[0].vertices.tobytes()) for group in groups}
    assert len(looks) == 49
    assert not drawn[0].legends


def test_scatter_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 values of Q, 1 of Dice"):
        scatter_q_dice(tmp_path / "s.png", [0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="1 subjects"):
        scatter_q_dice(tmp_path / "s.png", [0.1, 0.2], [0.1, 0.2], subjects=["a"])
    with pytest.raises(ValueError, match="no case"):
        scatter_q_dice(tmp_path / "s.png", [0.1], [float("nan")])
