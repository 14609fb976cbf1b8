from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from skimage import io

from nnunet_qa.errors import ImageError, StorageError
from nnunet_qa.reports import segmentation_figures as figures
from nnunet_qa.reports.segmentation_figures import (
    ErrorPanel,
    arms_picture,
    error_colours,
    errors_picture,
    level_losses_picture,
    level_outputs_picture,
)

MAGENTA, BLUE, RED = (1, 0, 1), (0, 0, 1), (1, 0, 0)
WHITE, BLACK = (1, 1, 1), (0, 0, 0)
GREY = to_rgb(figures.IGNORED)
ONE, TWO = {"a": (1,)}, {"a": (1,), "b": (2,)}
SHAPE = (20, 30)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, so that a test knows where in the PNG an image lies."""
    kept: list[Figure] = []
    save = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path))[1])
    return kept


def pixel(path: Path, figure: Figure, place: int, row: float, column: float) -> tuple[float, ...]:
    """Colour in the PNG of a point in the data coordinates of a place."""
    picture = io.imread(path)[..., :3] / 255
    x, y = figure.axes[place].transData.transform((column, row))
    return tuple(picture[len(picture) - 1 - int(y), int(x)])


def box(top: int, left: int, size: int = 6, value: int = 1, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[..., top : top + size, left : left + size] = value
    return mask


def grey(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.linspace(0, 200, int(np.prod(shape))).reshape(shape)


def panel(case_id: str = "S01", dice: float = 0.5, **changes: np.ndarray) -> ErrorPanel:
    # shared: columns 8 to 10; only predicted: 11 to 13; only true: 5 to 7
    arrays = {"image": grey(), "prediction": box(4, 8), "truth": box(4, 5), **changes}
    return ErrorPanel(case_id=case_id, dice=dice, **arrays)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def nearly(found: tuple[float, ...], colour: tuple[float, ...], tolerance: float = 0.2) -> bool:
    return bool(np.abs(np.array(found) - colour).max() <= tolerance)


def test_errors_have_their_colours_and_correct_background_stays_grey() -> None:
    picture = error_colours(grey(), box(4, 8), box(4, 5))
    for column, colour in ((6, RED), (9, MAGENTA), (12, BLUE)):
        assert nearly(tuple(picture[5, column]), colour)
    outside = picture[(box(4, 8) == 0) & (box(4, 5) == 0)]
    assert (outside == outside[:, :1]).all()
    assert outside.min() == pytest.approx(0, abs=0.01)
    assert outside.max() == pytest.approx(1, abs=0.01)


def test_a_wrong_class_is_a_false_negative() -> None:
    picture = error_colours(grey(), box(4, 5, value=2), box(4, 5, value=1))
    assert nearly(tuple(picture[5, 6]), RED)
    assert nearly(tuple(error_colours(grey(), box(4, 5, value=2), box(4, 5, value=2))[5, 6]), MAGENTA)


def test_the_png_shows_best_and_worst_in_rows(tmp_path: Path, drawn: list[Figure]) -> None:
    nothing = np.zeros(SHAPE, np.uint8)
    rows = {"best": [panel("a", 0.91), panel("b", 0.9)], "worst": [panel("c", 0.1, prediction=nothing)]}
    path = errors_picture(tmp_path / "new" / "e.png", rows, heading="Test")
    assert titles(drawn[0]) == ["a\nDice=0.91", "b\nDice=0.90", "c\nDice=0.10", ""]
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["best", "", "worst", ""]
    assert legend_texts(drawn[0]) == ["true positive", "false positive", "false negative"]
    for place in (0, 1):
        for column, colour in ((6, RED), (9, MAGENTA), (12, BLUE)):
            assert nearly(pixel(path, drawn[0], place, 6, column), colour)
    for column, colour in ((6, RED), (9, RED)):
        assert nearly(pixel(path, drawn[0], 2, 6, column), colour)
    red, green, blue = pixel(path, drawn[0], 2, 6, 12)
    assert red == green == blue


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_legend_lies_inside_the_figure(tmp_path: Path, drawn: list[Figure], columns: int) -> None:
    several = panel(prediction=box(4, 8, value=2))
    errors_picture(tmp_path / "e.png", {"best": [several] * columns})
    assert legend_texts(drawn[0])[-1] == "false negative or wrong class"
    extent = drawn[0].legends[0].get_window_extent()
    width, height = drawn[0].get_size_inches() * drawn[0].dpi
    assert extent.x0 >= 0
    assert extent.x1 <= width
    assert extent.y0 >= 0
    assert extent.y1 <= height


def test_a_volume_shows_the_slice_with_most_foreground(tmp_path: Path, drawn: list[Figure]) -> None:
    shape = (4, *SHAPE)
    truth, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    truth[1, 4:7, 5:8], truth[2, 4:10, 5:11], prediction[3] = 1, 1, 1
    volume = panel(image=grey(shape), prediction=prediction, truth=truth)
    only_predicted = panel(image=grey(shape), prediction=prediction, truth=np.zeros(shape, np.uint8))
    path = errors_picture(tmp_path / "e.png", {"worst": [volume, only_predicted]})
    assert titles(drawn[0]) == ["S01  slice 2\nDice=0.50", "S01  slice 3\nDice=0.50"]
    assert nearly(pixel(path, drawn[0], 0, 9, 10), RED)
    assert nearly(pixel(path, drawn[0], 1, 9, 10), BLUE)


def test_wrong_panels_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"S01: image and label maps must have one shape .* \(20, 30\), \(3, 3\)"):
        errors_picture(tmp_path / "e.png", {"best": [panel(truth=np.zeros((3, 3), int))]})
    flat = np.zeros(4, int)
    with pytest.raises(ImageError, match="2 or 3 axes"):
        errors_picture(tmp_path / "e.png", {"best": [panel(image=flat, truth=flat, prediction=flat)]})
    with pytest.raises(ValueError, match="at least one panel"):
        errors_picture(tmp_path / "e.png", {"best": []})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        errors_picture(tmp_path / "file" / "e.png", {"best": [panel()]})
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_levels_with_their_agreement_by_hand(tmp_path: Path, drawn: list[Figure]) -> None:
    # 36 pixels each; a shift by 3 columns leaves 18 of 54 shared, one by 2 columns 24 of 48
    levels = [box(4, 13), box(4, 10), box(4, 8)]
    path = level_outputs_picture(tmp_path / "l.png", grey(), levels, box(4, 8), title="S01", q=0.5, classes=ONE)
    texts = ["image", "L1, J to L2 0.33", "L2, J to L3 0.50", "L3, J to truth 1.00", "truth"]
    assert titles(drawn[0]) == texts
    assert drawn[0].get_suptitle() == "S01  Q=0.50"
    for place, inside in ((1, True), (2, False), (3, False), (4, False)):
        assert pixel(path, drawn[0], place, 6, 17) == (WHITE if inside else BLACK)
    for place in (3, 4):
        assert pixel(path, drawn[0], place, 6, 9) == WHITE


def test_levels_of_several_classes_in_a_volume(tmp_path: Path, drawn: list[Figure]) -> None:
    shape = (3, *SHAPE)
    truth = np.zeros(shape, np.uint8)
    truth[1, 2:8, 2:8], truth[1, 10:16, 10:16] = 1, 2
    level = truth.copy()
    level[1, 2:8, 2:8] = 0  # class 1 is missing, class 2 whole: J = 1/2
    path = level_outputs_picture(tmp_path / "l.png", grey(shape), [level], truth, title="v", q=0.25, classes=TWO)
    assert titles(drawn[0]) == ["image", "L1, J to truth 0.50", "truth"]
    assert drawn[0].get_suptitle() == "v  slice 1  Q=0.25"
    one, two = (to_rgb(colour) for colour in figures._CLASSES[1:3])
    assert pixel(path, drawn[0], 1, 4, 4) == BLACK
    assert nearly(pixel(path, drawn[0], 2, 4, 4), one, 0.01)
    for place in (1, 2):
        assert nearly(pixel(path, drawn[0], place, 12, 12), two, 0.01)


def test_agreement_counts_every_class_and_regions_as_q_does(tmp_path: Path, drawn: list[Figure]) -> None:
    # 18 of 54 pixels are shared; class 2 is in neither level, and rightly so
    levels = [box(4, 11), box(4, 8)]
    level_outputs_picture(tmp_path / "l.png", grey(), levels, box(4, 8), title="S01", q=0.67, classes=TWO)
    assert titles(drawn[0])[1] == "L1, J to L2 0.67"
    nested = {"whole": (1, 2), "core": (2,)}  # the whole agrees, its core does not
    levels = [box(4, 8), box(4, 8, value=2)]
    level_outputs_picture(tmp_path / "l.png", grey(), levels, box(4, 8), title="S01", q=0.5, classes=nested)
    assert titles(drawn[1])[1] == "L1, J to L2 0.50"


def test_the_ignore_label_is_grey_and_does_not_count(tmp_path: Path, drawn: list[Figure]) -> None:
    truth = np.where(box(10, 20, 8) > 0, 3, box(4, 8))  # more pixels are ignored than true
    prediction = np.maximum(box(4, 8), box(10, 20))
    picture = error_colours(grey(), prediction, truth, ignore=3)
    for row, column in ((12, 22), (17, 27)):
        assert nearly(tuple(picture[row, column]), GREY)
    assert nearly(tuple(picture[5, 9]), MAGENTA)
    volume = np.zeros((2, *SHAPE), np.uint8)
    volume[0], volume[1] = np.where(truth == 1, 1, 0), np.where(truth == 3, 3, 0)
    with_ignore = ErrorPanel(case_id="v", dice=1, image=grey(volume.shape), prediction=volume, truth=volume, ignore=3)
    errors_picture(tmp_path / "e.png", {"best": [with_ignore]})
    assert titles(drawn[0]) == ["v  slice 0\nDice=1.00"]
    flat = ErrorPanel(case_id="f", dice=1, image=grey(), prediction=prediction, truth=truth, ignore=3)
    errors_picture(tmp_path / "e.png", {"best": [flat]})
    assert legend_texts(drawn[1]) == ["true positive", "false positive", "false negative", "ignored"]
    path = level_outputs_picture(tmp_path / "l.png", grey(), [prediction], truth, title="f", q=1, classes=ONE, ignore=3)
    assert titles(drawn[2])[1] == "L1, J to truth 1.00"
    assert nearly(pixel(path, drawn[2], 2, 12, 22), GREY, 0.01)
    for place in (1, 2):
        assert pixel(path, drawn[2], place, 5, 9) == WHITE  # one class, so white


def test_empty_levels_agree_and_wrong_ones_are_named(tmp_path: Path, drawn: list[Figure]) -> None:
    nothing = np.zeros(SHAPE, np.uint8)
    level_outputs_picture(tmp_path / "l.png", grey(), [nothing, nothing], nothing, title="S01", q=1, classes=TWO)
    assert titles(drawn[0])[1:3] == ["L1, J to L2 1.00", "L2, J to truth 1.00"]
    with pytest.raises(ImageError, match=r"S01: image and label maps must have one shape"):
        level_outputs_picture(tmp_path / "x.png", grey(), [nothing[:5]], nothing, title="S01", q=1, classes=ONE)
    with pytest.raises(ValueError, match="at least one level"):
        level_outputs_picture(tmp_path / "x.png", grey(), [], nothing, title="S01", q=1, classes=ONE)
    assert not (tmp_path / "x.png").exists()


def test_a_loss_line_for_each_level(tmp_path: Path, drawn: list[Figure]) -> None:
    losses = pd.DataFrame({"L1": [-0.5, -1.0, -2.0], "L2": [0.0, 0.0, 0.0]}, index=[1, 2, 3])
    path = level_losses_picture(tmp_path / "l.png", losses, heading="seed 0")
    (axes,) = drawn[0].axes
    first, second = axes.get_lines()
    np.testing.assert_array_equal(first.get_xydata(), [[1, -0.5], [2, -1], [3, -2]])
    assert (first.get_label(), second.get_label()) == ("L1", "L2")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["L1", "L2"]
    assert axes.get_title() == "seed 0"
    for line, (row, column) in ((first, (-1.5, 2.5)), (second, (0, 2.5))):
        assert nearly(pixel(path, drawn[0], 0, row, column), to_rgb(line.get_color()), 0.1)
    level_losses_picture(tmp_path / "one.png", losses.iloc[:1])
    assert drawn[1].axes[0].get_lines()[0].get_marker() == "o"
    with pytest.raises(ValueError, match="at least one epoch"):
        level_losses_picture(tmp_path / "x.png", losses.iloc[:0])


def test_arms_with_every_seed_mean_and_spread(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [
        ("random", 12, 0.5),
        ("random", 12, 0.6),
        ("random", 12, 0.7),
        ("QU", 8, 0.8),
        ("QU", 9, 0.8),
        ("all", 50, 0.9),
    ]
    table = pd.DataFrame(rows, columns=["arm", "annotated", "dice"])
    path = arms_picture(tmp_path / "a.png", table, heading="OCT")
    (axes,) = drawn[0].axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["random (12 images)", "QU (8 to 9 images)", "all (50 images)"]
    assert axes.yaxis_inverted()  # the first arm on top
    assert (axes.get_xlabel(), axes.get_title()) == ("Dice", "OCT")
    dots, bars = axes.collections[::2], [container[2][0] for container in axes.containers]
    assert [sorted(dot.get_offsets()[:, 0].tolist()) for dot in dots] == [[0.5, 0.6, 0.7], [0.8, 0.8], [0.9]]
    assert len(set(dots[1].get_offsets()[:, 1])) == 2  # equal scores do not hide each other
    ends = [bar.get_segments()[0][:, 0] for bar in bars]
    assert ends[0] == pytest.approx([0.5, 0.7])  # mean 0.6, deviation 0.1
    assert ends[1] == pytest.approx([0.8, 0.8])
    assert ends[2] == pytest.approx([0.9, 0.9])
    for place, mean in enumerate((0.6, 0.8, 0.9)):
        assert nearly(pixel(path, drawn[0], 0, place, mean), to_rgb("#0072B2"), 0.1)
    with pytest.raises(ValueError, match="at least one arm"):
        arms_picture(tmp_path / "x.png", table.iloc[:0])


def test_another_score(tmp_path: Path, drawn: list[Figure]) -> None:
    table = pd.DataFrame({"arm": ["a"], "annotated": [3], "dice_pooled": [0.25]})
    arms_picture(tmp_path / "a.png", table, score="dice_pooled")
    assert drawn[0].axes[0].get_xlabel() == "Dice pooled"
    assert drawn[0].axes[0].collections[0].get_offsets()[:, 0].tolist() == [0.25]
