from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import entropy as scipy_entropy

from nnunet_qa.quality.uncertainty import entropy, entropy_by_slice

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("shape", [(2, 2, 5, 7), (1, 4, 3, 5, 7), (3, 6, 9)])
def test_entropy_of_labels_is_scipys(shape: tuple[int, ...]) -> None:
    logits = RNG.normal(0, 4, shape)
    expected = scipy_entropy(softmax(logits, axis=1), axis=1)
    np.testing.assert_allclose(entropy(torch.from_numpy(logits)), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 5, 7), (1, 3, 3, 5, 7)])
def test_entropy_of_regions_is_the_mean_of_binary_entropies(shape: tuple[int, ...]) -> None:
    logits = RNG.normal(0, 4, shape)
    expected = scipy_entropy(np.stack([expit(logits), expit(-logits)]), axis=0).mean(axis=1)
    np.testing.assert_allclose(entropy(torch.from_numpy(logits), regions=True), expected, atol=1e-6)


@pytest.mark.parametrize("regions", [False, True])
def test_slices_have_the_mean_of_their_voxels(regions: bool) -> None:
    logits = torch.from_numpy(RNG.normal(0, 2, (3, 4, 5, 6)))
    found = entropy_by_slice(logits, regions=regions)
    voxels = entropy(logits[None], regions=regions)[0].double()
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, voxels.mean(dim=(1, 2)), atol=1e-6)
    assert float(found.mean()) == pytest.approx(float(voxels.mean()), abs=1e-6)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_certain_and_undecided_voxels(regions: bool, dtype: torch.dtype) -> None:
    certain = torch.tensor([60000.0, -60000.0], dtype=dtype).view(1, 2, 1, 1)
    assert entropy(certain, regions=regions).item() == 0
    undecided = entropy(torch.zeros(1, 2, 1, 1, dtype=dtype), regions=regions).item()
    assert undecided == pytest.approx(np.log(2))
