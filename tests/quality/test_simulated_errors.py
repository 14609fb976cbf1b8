from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import f1_score

from nnunet_qa.quality.codes import Code, CodeThresholds
from nnunet_qa.quality.simulated_errors import ErrorKind, corrupted, simulate_error

CLASSES = [1, 2, 3]
GROUPS = {"left": (1,), "right": (2,), "far": (3,)}
SHAPES = [(64, 144), (26, 28, 40)]
KINDS = list(ErrorKind)


def phantom(shape: tuple[int, ...]) -> np.ndarray:
    """Two objects that touch, and two small ones of a third class apart from them."""
    labels = np.zeros(shape, np.int16)
    for value, centre, radius in (
        (1, 0.3, 0.19),
        (2, 0.56, 0.15),
        (3, 0.85, 0.08),
        (3, 0.08, 0.06),
    ):
        axes = np.ogrid[tuple(slice(size) for size in shape)]
        middles = [size * (centre if axis == len(shape) - 1 else 0.5) for axis, size in enumerate(shape)]
        radii = [
            size * (radius if axis == len(shape) - 1 else max(radius, 0.1) * 1.4) for axis, size in enumerate(shape)
        ]
        inside = sum(((a - m) / r) ** 2 for a, m, r in zip(axes, middles, radii, strict=True)) < 1
        labels[inside] = value
    return labels


def dice_written_out(labels: np.ndarray, truth: np.ndarray) -> float:
    pairs = [(labels == value, truth == value) for value in CLASSES]
    return float(np.mean([2 * (ours & real).sum() / (ours.sum() + real.sum()) for ours, real in pairs]))


def some(
    shape: tuple[int, ...], kind: ErrorKind, severity: float, count: int = 6
) -> tuple[np.ndarray, list[np.ndarray]]:
    truth, rng = phantom(shape), np.random.default_rng(0)
    return truth, [simulate_error(truth, kind, severity=severity, classes=CLASSES, rng=rng) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("kind", KINDS)
def test_dice_falls_with_severity(kind: ErrorKind, shape: tuple[int, ...]) -> None:
    means = []
    for severity in (0.05, 0.35, 0.65, 1.0):
        truth, results = some(shape, kind, severity)
        means.append(np.mean([dice_written_out(result, truth) for result in results]))
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.8
    assert means[-1] < 0.6


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_stay_in_the_allowed_set(kind: ErrorKind, shape: tuple[int, ...], dtype: type) -> None:
    truth = phantom(shape).astype(dtype)
    before = truth.copy()
    for severity in (0.1, 1.0):
        rngs = [np.random.default_rng(5) for _ in range(2)]
        first, again = (simulate_error(truth, kind, severity=severity, classes=CLASSES, rng=rng) for rng in rngs)
        np.testing.assert_array_equal(first, again)
        assert first.dtype == truth.dtype
        assert first.shape == truth.shape
        assert set(np.unique(first)) <= {0, *CLASSES}
        assert not np.array_equal(first, truth)
        assert not np.shares_memory(first, truth)
    np.testing.assert_array_equal(truth, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_voxels_that_do_not_count_are_left_alone(kind: ErrorKind, shape: tuple[int, ...]) -> None:
    truth = phantom(shape)
    truth[:4], truth[:, -8:] = -1, 9
    truth[shape[0] // 2, : shape[1] // 3] = 9
    for severity in (0.2, 0.9):
        changed = simulate_error(truth, kind, severity=severity, classes=CLASSES, rng=np.random.default_rng(1))
        for value in (-1, 9):
            np.testing.assert_array_equal(changed == value, truth == value)


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_missing_organ_only_takes_away(shape: tuple[int, ...]) -> None:
    truth, results = some(shape, ErrorKind.MISSING_ORGAN, 0.5)
    sizes = np.bincount(truth.ravel(), minlength=4)[1:]
    for result in results:
        assert set(np.unique(result[result != truth])) == {0}
        left = np.bincount(result.ravel(), minlength=4)[1:] / sizes
        assert sorted(left.round(1)) == [0, 0.5, 1]  # half of three objects: one whole and one half
    truth, (nothing, *_) = some(shape, ErrorKind.MISSING_ORGAN, 1.0)
    assert not nothing.any()


def test_missing_organ_takes_whole_components_first() -> None:
    truth = np.zeros((30, 60), int)
    for column in (5, 25, 45):
        truth[10:20, column : column + 10] = 1
    for seed in range(5):
        rng = np.random.default_rng(seed)
        result = simulate_error(truth, ErrorKind.MISSING_ORGAN, severity=1 / 3, classes=[1], rng=rng)
        components, count = ndimage.label(result)
        assert count == 2
        assert np.bincount(components.ravel())[1:].tolist() == [100, 100]


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_shift_is_a_translation(shape: tuple[int, ...]) -> None:
    truth, results = some(shape, ErrorKind.SHIFT, 0.15)
    ranges = [range(-6, 7)] * len(shape)
    for result in results:
        steps = [np.subtract(*pair) for pair in zip(centre(result), centre(truth), strict=True)]
        whole = np.rint(steps).astype(int)
        assert all(step in allowed for step, allowed in zip(whole, ranges, strict=True))
        assert np.abs(whole).sum() >= 1
        np.testing.assert_array_equal(ndimage.shift(truth, whole, order=0, cval=0), result)


def centre(labels: np.ndarray) -> tuple[float, ...]:
    return tuple(float(axis.mean()) for axis in np.nonzero(labels == 1))


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("kind", [ErrorKind.LEAK, ErrorKind.DILATION])
def test_objects_grow_from_their_border(kind: ErrorKind, shape: tuple[int, ...]) -> None:
    truth = (phantom(shape) == 1).astype(np.int16)
    beside = ndimage.binary_dilation(truth) & (truth == 0)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        result = simulate_error(truth, kind, severity=0.3, classes=[1], rng=rng)
        assert result[truth == 1].all()
        assert result[beside].any()
        assert ndimage.label(result)[1] == 1  # all that was added hangs together with the object


@pytest.mark.parametrize("kind", [ErrorKind.LEAK, ErrorKind.DILATION])
def test_objects_grow_over_their_neighbours(kind: ErrorKind) -> None:
    truth, results = some(SHAPES[0], kind, 0.5)
    pairs = {pair for result in results for pair in zip(truth[result != truth], result[result != truth], strict=True)}
    assert {(0, 1), (0, 2), (0, 3)} <= pairs
    assert {(1, 2), (2, 1)} & pairs
    assert not any(after == 0 for _, after in pairs)


def test_a_leak_is_local_and_a_dilation_is_all_round() -> None:
    truth = (phantom((64, 144)) == 1).astype(int)
    rim = ndimage.binary_dilation(truth) & (truth == 0)
    touched = {}
    for kind in (ErrorKind.LEAK, ErrorKind.DILATION):
        results = [
            simulate_error(truth, kind, severity=0.2, classes=[1], rng=np.random.default_rng(seed))
            for seed in range(20)
        ]
        touched[kind] = np.mean([result[rim].mean() for result in results])
    assert touched[ErrorKind.LEAK] < 0.7 < 0.95 < touched[ErrorKind.DILATION]


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_merge_extends_one_class_over_its_neighbour(shape: tuple[int, ...]) -> None:
    truth, results = some(shape, ErrorKind.MERGE, 0.5)
    for result in results:
        np.testing.assert_array_equal(result > 0, truth > 0)
        assert (result != truth).any()
    truth = np.where(phantom(shape) == 3, 0, phantom(shape))
    rng = np.random.default_rng(0)
    result = simulate_error(truth, ErrorKind.MERGE, severity=1.0, classes=CLASSES, rng=rng)
    assert len(np.unique(result[truth > 0])) == 1
    result = simulate_error(truth, ErrorKind.MERGE, severity=0.1, classes=CLASSES, rng=rng)
    other = ({1, 2} - set(np.unique(truth[result != truth]))).pop()
    distance = ndimage.distance_transform_edt(truth != other)
    assert distance[result != truth].mean() < distance[(truth > 0) & (truth != other)].mean() / 2


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_erosion_takes_from_the_border(shape: tuple[int, ...]) -> None:
    truth, results = some(shape, ErrorKind.EROSION, 0.3)
    depth = sum(ndimage.distance_transform_edt(truth == value) for value in CLASSES)
    for result in results:
        lost = (result != truth) & (truth > 0)
        assert lost.any()
        assert (result[truth == 0] == 0).all()
        assert depth[lost].mean() < depth[(truth > 0) & ~lost].mean()


def test_erosion_leaves_no_gap_between_objects() -> None:
    truth = np.ones((20, 20), int)
    truth[:, 10:] = 2
    result = simulate_error(truth, ErrorKind.EROSION, severity=0.5, classes=[1, 2], rng=np.random.default_rng(0))
    assert (result != truth).any()
    assert result.all()


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_label_swap_keeps_the_foreground(shape: tuple[int, ...]) -> None:
    truth, results = some(shape, ErrorKind.LABEL_SWAP, 1.0)
    for result in results:
        np.testing.assert_array_equal(result > 0, truth > 0)
        # with full severity each object has one label, another than its own
        after = [np.unique(result[truth == value]).tolist() for value in CLASSES]
        assert sorted(after) == [[1], [2], [3]]
        assert all(values != [value] for value, values in zip(CLASSES, after, strict=True))
    truth, results = some(shape, ErrorKind.LABEL_SWAP, 0.3)
    assert all(((result > 0) == (truth > 0)).all() for result in results)


def test_one_object_takes_the_label_of_a_class_that_is_absent() -> None:
    truth = (phantom((64, 144)) == 1).astype(int)
    rng = np.random.default_rng(0)
    result = simulate_error(truth, ErrorKind.LABEL_SWAP, severity=1.0, classes=[1, 4], rng=rng)
    np.testing.assert_array_equal(result, truth * 4)


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_noise_blobs_lie_in_the_background(shape: tuple[int, ...]) -> None:
    truth, results = some(shape, ErrorKind.NOISE_BLOBS, 0.2)
    apart = 0
    for result in results:
        np.testing.assert_array_equal(result[truth > 0], truth[truth > 0])
        assert (result != truth).any()
        components, _ = ndimage.label(result)
        apart += bool(set(np.unique(components)) - set(np.unique(components[truth > 0])) - {0})
    assert apart >= len(results) / 2
    empty = np.zeros(shape, int)
    result = simulate_error(empty, ErrorKind.NOISE_BLOBS, severity=0.5, classes=CLASSES, rng=np.random.default_rng(0))
    assert result.any()


def test_slices_lost_are_whole_slices_at_an_end_or_between() -> None:
    shape = SHAPES[1]
    truth = phantom(shape)
    places = set()
    (held,) = np.nonzero(truth.any(axis=(1, 2)))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        result = simulate_error(truth, ErrorKind.SLICES_LOST, severity=0.25, classes=CLASSES, rng=rng)
        (left,) = np.nonzero(result.any(axis=(1, 2)))
        lost = sorted(set(held) - set(left))
        assert len(lost) == round(0.25 * len(held))
        assert lost == list(range(lost[0], lost[-1] + 1))
        np.testing.assert_array_equal(result[left], truth[left])
        places.add("first" if lost[0] == held[0] else "last" if lost[-1] == held[-1] else "between")
    assert places == {"first", "last", "between"}


def test_in_two_dimensions_rows_or_columns_are_lost() -> None:
    truth, results = some(SHAPES[0], ErrorKind.SLICES_LOST, 0.3, count=20)
    bands = set()
    for result in results:
        lost = result != truth
        for axis in (0, 1):
            (found,) = np.nonzero(lost.any(axis=1 - axis))
            band = np.moveaxis(lost, axis, 0)[found[0] : found[-1] + 1]
            if np.array_equal(band, np.moveaxis(truth > 0, axis, 0)[found[0] : found[-1] + 1]):
                bands.add(axis)
                break
        else:
            pytest.fail("neither a band of rows nor one of columns is lost")
    assert bands == {0, 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 8), (1, 6, 7), (4, 5, 6)])
def test_images_that_are_empty_full_or_tiny(kind: ErrorKind, fill: int, shape: tuple[int, ...]) -> None:
    truth = np.full(shape, fill)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        result = simulate_error(truth, kind, severity=0.6, classes=CLASSES, rng=rng)
        assert result.shape == shape
        assert set(np.unique(result)) <= {0, *CLASSES}
        if fill == 0 and kind is not ErrorKind.NOISE_BLOBS:
            assert not result.any()


@pytest.mark.parametrize("kind", [ErrorKind.MERGE, ErrorKind.LABEL_SWAP])
def test_one_class_has_nothing_to_be_taken_for(kind: ErrorKind) -> None:
    truth = (phantom((64, 144)) > 0).astype(int)
    result = simulate_error(truth, kind, severity=1.0, classes=[1], rng=np.random.default_rng(0))
    np.testing.assert_array_equal(result, truth)


@pytest.mark.parametrize(
    ("shape", "classes", "severity"),
    [((5,), [1], 0.5), ((2, 2, 2, 2), [1], 0.5), ((5, 5), [], 0.5), ((5, 5), [1], 0.0), ((5, 5), [1], 1.5)],
)
def test_what_is_refused(shape: tuple[int, ...], classes: list[int], severity: float) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"a severity in \(0, 1\]"):
        simulate_error(np.zeros(shape, int), ErrorKind.SHIFT, severity=severity, classes=classes, rng=rng)


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("thresholds", [CodeThresholds(), CodeThresholds(success=0.92, failure=0.85)])
@pytest.mark.parametrize("code", list(Code))
def test_the_wanted_code(code: Code, thresholds: CodeThresholds, shape: tuple[int, ...]) -> None:
    truth, rng = phantom(shape), np.random.default_rng(0)
    limits = {0: (thresholds.success, 1.0), 1: (thresholds.failure, thresholds.success), 2: (0.0, thresholds.failure)}
    found = [corrupted(truth, classes=GROUPS, code=code, thresholds=thresholds, rng=rng) for _ in range(20)]
    dices, kinds = [], set()
    for result in found:
        assert result is not None
        assert result.code is code
        assert result.dice == pytest.approx(dice_written_out(result.labels, truth))
        low, high = limits[code]
        assert low <= result.dice <= high
        assert thresholds.code(result.dice) is code
        assert len(result.kinds) == len(set(result.kinds)) <= 3
        assert result.kinds or (code is Code.SUCCESS and np.array_equal(result.labels, truth))
        dices.append(result.dice)
        kinds.update(result.kinds)
    assert np.ptp(dices) > 0.5 * (limits[code][1] - limits[code][0])
    assert len(kinds) > 6


def test_the_same_draws_give_the_same_labels() -> None:
    truth = phantom((64, 144))
    results = [
        corrupted(truth, classes=GROUPS, code=Code.MINOR, thresholds=CodeThresholds(), rng=np.random.default_rng(seed))
        for seed in (3, 3, 4)
    ]
    first, again, other = (result.labels for result in results if result is not None)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_regions() -> None:
    truth, rng = phantom((64, 144)), np.random.default_rng(0)
    regions = {"whole": (1, 2), "core": (2,)}
    for code in Code:
        result = corrupted(truth, classes=regions, code=code, thresholds=CodeThresholds(), rng=rng)
        assert result is not None
        dice = [
            f1_score(np.isin(truth, values).ravel(), np.isin(result.labels, values).ravel())
            for values in regions.values()
        ]
        assert result.dice == pytest.approx(np.mean(dice))
        np.testing.assert_array_equal(result.labels == 3, truth == 3)


def test_empty_labels_are_right_or_wrong() -> None:
    empty, rng = np.zeros((64, 144), np.int16), np.random.default_rng(0)
    results = {
        code: corrupted(empty, classes={"fluid": (1,)}, code=code, thresholds=CodeThresholds(), rng=rng)
        for code in Code
    }
    success, minor, failure = results.values()
    assert success is not None
    assert not success.labels.any()
    assert (success.dice, success.kinds) == (1.0, ())
    assert minor is None
    assert failure is not None
    assert (failure.dice, failure.kinds) == (0.0, (ErrorKind.NOISE_BLOBS,))
    assert failure.labels.any()


def test_nothing_to_corrupt() -> None:
    """Every voxel is left out, so no error can be made."""
    truth = np.full((8, 8), -1)
    result = corrupted(
        truth, classes=GROUPS, code=Code.FAILURE, thresholds=CodeThresholds(), rng=np.random.default_rng(0)
    )
    assert result is None


@pytest.mark.parametrize(("shape", "limit"), [((64, 144), 0.010), ((48, 48, 48), 0.100)])
def test_it_is_fast(shape: tuple[int, ...], limit: float) -> None:
    truth = phantom(shape)

    def seconds(seed: int) -> float:
        rng, start = np.random.default_rng(seed), time.process_time()
        corrupted(truth, classes=GROUPS, code=Code(seed % 3), thresholds=CodeThresholds(), rng=rng)
        return time.process_time() - start

    # of each draw the fastest of three, for other processes share the machine
    assert np.median([min(seconds(seed) for _ in range(3)) for seed in range(12)]) < limit
