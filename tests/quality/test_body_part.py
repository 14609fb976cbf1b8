from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from nnunet_qa.data.slice_stack import BodyAxis, SliceSpec, SliceStack, field_of_view, read_stacks
from nnunet_qa.errors import DatasetError, ImageError, SelectionError
from nnunet_qa.quality import body_part
from nnunet_qa.quality.body_part import BodyPartRegressor, draw_slices, draw_views, order_loss, viewed
from nnunet_qa.quality.body_part_scale import Landmark
from nnunet_qa.quality.slice_scores import slab_range
from tests.body import SPACING, SPEC, one_thread, stacks

SMALL = {"features": (8, 16), "steps": 60, "learning_rate": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def fitted() -> BodyPartRegressor:
    return BodyPartRegressor(SPEC, **SMALL).fit(stacks(6))


def test_the_loss_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    scores, distances = rng.normal(size=(3, 5)), rng.uniform(0, 80, (3, 4))
    for alpha, beta in ((0.5, 0.025), (1.0, 0.1)):
        terms = [
            (
                1 / (1 + math.exp(-beta * distances[v, i]))
                - 1 / (1 + math.exp(-alpha * (scores[v, i + 1] - scores[v, i])))
            )
            ** 2
            for v in range(3)
            for i in range(4)
        ]
        found = order_loss(torch.tensor(scores), torch.tensor(distances), alpha=alpha, beta=beta)
        assert found.item() == pytest.approx(sum(terms) / 12)
    default = order_loss(torch.tensor(scores), torch.tensor(distances))
    assert default.item() == pytest.approx(
        order_loss(torch.tensor(scores), torch.tensor(distances), alpha=0.5, beta=0.025).item()
    )


def test_the_gradient_of_the_loss() -> None:
    scores = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    distances = torch.rand(2, 3, dtype=torch.float64) * 50
    assert torch.autograd.gradcheck(lambda scores: order_loss(scores, distances), (scores,))


def test_drawn_slices_are_in_order_and_about_evenly_spaced() -> None:
    rng = np.random.default_rng(0)
    depth = np.delete(np.arange(200) * 2.0, [30, 31, 90])
    gaps = []
    for _ in range(300):
        drawn = draw_slices(rng, depth, 5)
        steps = np.diff(depth[drawn])
        assert (steps >= 0).all()
        assert np.ptp(steps) <= 8  # up to 4 mm off at either end, beside the missing slices
        gaps.append(steps.mean())
    assert min(gaps) < 12
    assert 85 < max(gaps) <= 100  # 398 mm hold five slices up to 99 mm apart


def test_a_short_scan_is_drawn_from_end_to_end() -> None:
    drawn = {tuple(draw_slices(np.random.default_rng(seed), np.array([7.0, 10.0, 13.0]), 4)) for seed in range(20)}
    assert drawn == {(0, 0, 1, 2)} or all(set(one) <= {0, 1, 2} and list(one) == sorted(one) for one in drawn)
    assert any(one[0] == 0 and one[-1] == 2 for one in drawn)


def test_views() -> None:
    pictures = torch.rand(2, 3, 9, 9)
    still = np.tile(np.eye(2, 3, dtype=np.float32), (2, 1, 1))
    torch.testing.assert_close(viewed(pictures, still), pictures, atol=1e-5, rtol=0)
    moved = still.copy()
    moved[1, 0, 2] = 2 / 9 * 2  # two of nine columns
    result = viewed(pictures, moved)
    torch.testing.assert_close(result[0], pictures[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(result[1, :, :, :7], pictures[1, :, :, 2:], atol=1e-5, rtol=0)
    assert not result[1, :, :, 7:].any()
    drawn = draw_views(np.random.default_rng(0), 500)
    scale = np.sqrt(np.linalg.det(drawn[:, :, :2]))
    assert 0.9 < scale.min() < 0.92
    assert 1.08 < scale.max() < 1.11
    angle = np.degrees(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    assert 4.8 < np.abs(angle).max() <= 5
    assert 0.095 < np.abs(drawn[:, :, 2]).max() <= 0.1


def test_scores_of_unseen_scans_grow_with_depth(fitted: BodyPartRegressor) -> None:
    unseen = stacks(4, seed=1)
    table = fitted.score(unseen)
    assert table["case_id"].tolist() == ["c0", "c1", "c2", "c3"]
    assert (table["spearman"] > 0.97).all(), table
    assert (table["increasing_smoothed"] > 0.9).all(), table
    for volume, spearman in zip(unseen, table["spearman"], strict=True):
        assert spearmanr(volume.depth, fitted.predict(volume)).statistic == pytest.approx(spearman)
    losses = fitted.history_["loss"]
    assert losses[-10:].mean() < 0.4 * losses[:5].mean()


def test_a_score_is_the_same_place_in_every_scan(fitted: BodyPartRegressor) -> None:
    # scans begin 0, 20, 40 and 60 mm below the crown
    starts = []
    for top, volume in zip(np.linspace(0, 60, 4), stacks(4, seed=1), strict=True):
        found = slab_range(fitted.predict(volume), volume.depth, low=-6, high=6)
        starts.append((top + found.start, top + found.end))
    assert np.ptp(starts, axis=0).max() < 25
    # The standard scale: −12 where the middle scan begins, 30 mm, and 12 where it ends, 225 mm.
    assert np.mean(starts, axis=0) == pytest.approx([78.75, 176.25], abs=20)


def test_empty_slices_have_no_score_and_change_nothing(fitted: BodyPartRegressor) -> None:
    (volume,) = stacks(1, seed=2)
    pictures = volume.pictures.copy()
    pictures[:4] = 0
    padded = replace(volume, pictures=pictures)
    scores = fitted.predict(padded)
    assert np.isnan(scores).tolist() == [True] * 4 + [False] * 36
    np.testing.assert_allclose(scores[4:], fitted.predict(volume)[4:], atol=1e-4)


def test_landmarks_set_the_scale() -> None:
    volumes = stacks(4)
    marks = [Landmark(volume.case_id, 10, 100.0) for volume in volumes]
    marks += [Landmark(volume.case_id, 30, 200.0) for volume in volumes]
    regressor = BodyPartRegressor(SPEC, **SMALL).fit(volumes, landmarks=marks)
    at = np.array([regressor.predict(volume)[[10, 30]] for volume in volumes]).mean(axis=0)
    assert at == pytest.approx([100, 200], abs=20)
    assert "8 landmarks" in regressor.scale_.meaning


class Killed(Exception):
    pass


def test_a_killed_fit_goes_on_as_if_nothing_had_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes, state = stacks(2), tmp_path / "model.state"
    whole = BodyPartRegressor(SPEC, features=(4,), steps=12).fit(volumes)
    monkeypatch.setattr(body_part, "_STEPS_BETWEEN_SAVES", 5)
    calls = []

    def killed(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 8:
            raise Killed
        return order_loss(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(body_part, "order_loss", killed)
        with pytest.raises(Killed):
            BodyPartRegressor(SPEC, features=(4,), steps=12).fit(volumes, state=state)
        calls.clear()
        resumed = BodyPartRegressor(SPEC, features=(4,), steps=12).fit(volumes, state=state)
    assert len(calls) == 7
    assert not state.exists()
    assert resumed.history_.equals(whole.history_)
    for name, value in whole.network_.state_dict().items():
        assert torch.equal(resumed.network_.state_dict()[name], value), name


def test_what_was_kept_of_another_fit_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes, state = stacks(2), tmp_path / "model.state"
    monkeypatch.setattr(body_part, "_STEPS_BETWEEN_SAVES", 2)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    BodyPartRegressor(SPEC, features=(4,), steps=4).fit(volumes, state=state)
    kept = state.read_bytes()
    for settings, scans in (({"seed": 1}, volumes), ({}, stacks(2, seed=5))):
        state.write_bytes(kept)
        found = BodyPartRegressor(SPEC, features=(4,), steps=4, **settings).fit(scans, state=state)
        fresh = BodyPartRegressor(SPEC, features=(4,), steps=4, **settings).fit(scans)
        assert found.history_.equals(fresh.history_)
    state.write_bytes(kept[:100])
    assert len(BodyPartRegressor(SPEC, features=(4,), steps=4).fit(volumes, state=state).history_) == 4


def test_fit_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second = (BodyPartRegressor(SPEC, features=(4,), steps=2).fit(stacks(2)) for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert first.history_.equals(second.history_)


def test_scans_that_cannot_be_learnt_from() -> None:
    volumes = stacks(2)
    with pytest.raises(DatasetError, match="two scans or more, found 1"):
        BodyPartRegressor(SPEC).fit(volumes[:1])
    pictures = np.zeros_like(volumes[1].pictures)
    pictures[3] = volumes[1].pictures[3]
    with pytest.raises(ImageError, match='the case "c1" has fewer than two slices'):
        BodyPartRegressor(SPEC).fit([volumes[0], replace(volumes[1], pictures=pictures)])
    with pytest.raises(SelectionError, match="two different scores"):
        BodyPartRegressor(SPEC).fit(volumes, landmarks=[Landmark("c0", 3, 1.0)])


def test_the_spacing_of_slices_is_in_mm() -> None:
    (volume,) = stacks(1)
    assert np.diff(volume.depth) == pytest.approx(np.full(39, SPACING[2]))


CUT_OUT = {"pt_22", "pt_99"}
"""Two patients of whom many slices hold next to nothing but the contoured organs: the rest was set to 0."""


@pytest.mark.real_data
def test_scores_of_real_unseen_patients_grow_from_head_to_feet(real_data: Path) -> None:
    """6 of 20 patients are unseen. Scores follow the order, and smoothed curves grow from neighbour to neighbour."""
    start = time.process_time()
    paths = {
        path.name.removesuffix(".nii.gz"): path
        for path in sorted((real_data / "openkbp_head_neck_ct" / "images").iterdir())
    }
    spec = SliceSpec(size=48, field_of_view=field_of_view(list(paths.values()), BodyAxis.HEAD_TO_FEET))
    volumes = read_stacks(paths, spec)
    unseen: list[SliceStack] = volumes[4:7] + volumes[-3:]  # the two cut out are among them
    training = [volume for volume in volumes if all(volume is not other for other in unseen)]
    regressor = BodyPartRegressor(spec, steps=300).fit(training)
    table = regressor.score(unseen).set_index("case_id")
    print(f"\n{table.round(3).to_string()}\n{time.process_time() - start:.0f} s of processor time")
    assert set(table.index) > CUT_OUT
    whole = table.drop(CUT_OUT)
    assert (whole["spearman"] > 0.95).all()
    assert (whole["increasing_smoothed"] >= 0.9).all()
    assert (table["spearman"] > 0.85).all()
