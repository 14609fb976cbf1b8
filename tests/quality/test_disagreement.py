from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from skimage.transform import resize
from sklearn.metrics import jaccard_score

from nnunet_qa.quality import disagreement
from nnunet_qa.quality.disagreement import (
    agreement_by_slice,
    agreement_of_masks,
    agreement_of_outputs,
    class_masks,
    jaccard,
    resize_output,
)


def logits(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_docstring_examples_hold() -> None:
    assert doctest.testmod(disagreement).failed == 0


@pytest.mark.parametrize("spatial", [(12, 17), (5, 8, 9)])
@pytest.mark.parametrize("channels", [2, 4])
def test_labels_equal_scikit_learn(spatial: tuple[int, ...], channels: int) -> None:
    first, second = logits((3, channels, *spatial), 0), logits((3, channels, *spatial), 1)
    q = agreement_of_outputs(first, second).per_class
    assert q.shape == (3, channels - 1)
    for image in range(3):
        a, b = first[image].argmax(0).numpy().ravel(), second[image].argmax(0).numpy().ravel()
        expected = jaccard_score(a, b, labels=list(range(1, channels)), average=None)
        np.testing.assert_allclose(q[image].numpy(), expected)


@pytest.mark.parametrize("spatial", [(12, 17), (5, 8, 9)])
def test_regions_equal_scikit_learn(spatial: tuple[int, ...]) -> None:
    first, second = logits((2, 3, *spatial), 2), logits((2, 3, *spatial), 3)
    q = agreement_of_outputs(first, second, regions=True).per_class
    assert q.shape == (2, 3)
    for image in range(2):
        for region in range(3):
            a = torch.sigmoid(first[image, region]).numpy().ravel() > 0.5
            b = torch.sigmoid(second[image, region]).numpy().ravel() > 0.5
            assert q[image, region] == pytest.approx(jaccard_score(a, b))


def test_the_mean_is_over_classes() -> None:
    agreement = agreement_of_outputs(logits((2, 4, 9, 9), 4), logits((2, 4, 9, 9), 5))
    np.testing.assert_allclose(agreement.mean.numpy(), agreement.per_class.numpy().mean(1))


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_are_counted_apart_and_sum_to_the_volume(slice_axis: int) -> None:
    first, second = logits((2, 3, 4, 6, 5), 6), logits((2, 3, 4, 6, 5), 7)
    whole = agreement_of_outputs(first, second)
    slices = agreement_of_outputs(first, second, slice_axis=slice_axis)
    assert slices.union.shape == (2, first.shape[2 + slice_axis], 2)
    assert torch.equal(slices.total(1).intersection, whole.intersection)
    one = agreement_of_outputs(first.select(2 + slice_axis, 3), second.select(2 + slice_axis, 3))
    assert torch.equal(slices.union[:, 3], one.union)


def test_both_empty_is_full_agreement_and_one_empty_none() -> None:
    empty = torch.zeros(1, 2, 4, 4)
    empty[:, 0] = 1
    full = -empty
    assert agreement_of_outputs(empty, empty).mean.item() == 1
    assert agreement_of_outputs(empty, full).mean.item() == 0
    assert jaccard(torch.tensor(0), torch.tensor(0)).item() == 1


def test_the_second_output_is_resized_linearly() -> None:
    small = logits((1, 1, 5, 6), 8)
    expected = resize(small[0, 0].numpy().astype(float), (10, 12), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resize_output(small, (10, 12))[0, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("spatial", [(8,), (8, 6), (4, 8, 6)])
def test_resizing_commutes_with_flipping(spatial: tuple[int, ...]) -> None:
    small = logits((1, 2, *spatial), 9)
    shape = tuple(2 * size for size in spatial)
    axes = tuple(range(2, small.ndim))
    torch.testing.assert_close(resize_output(small.flip(axes), shape), resize_output(small, shape).flip(axes))


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("spatial", [(7, 6, 5), (1, 9, 8)])
def test_slice_by_slice_equals_all_at_once(regions: bool, spatial: tuple[int, ...]) -> None:
    finest, second = logits((3, *spatial), 10), logits((3, *spatial), 11)
    margins = second if regions else second[1:] - second[:1]
    found = agreement_by_slice(finest, margins, regions=regions)
    expected = agreement_of_outputs(finest[None], second[None], regions=regions, slice_axis=0)
    assert torch.equal(found.intersection, expected.intersection[0])
    assert torch.equal(found.union, expected.union[0])


def test_half_precision_and_integer_counts() -> None:
    agreement = agreement_of_outputs(logits((1, 2, 8, 8), 12).half(), logits((1, 2, 4, 4), 13).half())
    assert agreement.union.dtype == torch.int64
    assert agreement.per_class.dtype == torch.float64


def test_outputs_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="batch and channels"):
        agreement_of_outputs(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="same shape"):
        agreement_of_masks(torch.zeros(1, 1, 4, 4, dtype=torch.bool), torch.zeros(1, 1, 4, 5, dtype=torch.bool))


def test_masks_leave_out_the_background() -> None:
    masks = class_masks(torch.tensor([[[5.0, 0.0]], [[0.0, 5.0]]])[None])
    assert masks.tolist() == [[[[False, True]]]]
