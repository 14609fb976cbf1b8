from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18, resnet34

from nnunet_qa.errors import ModelError
from nnunet_qa.networks.discriminator import resnet18_regressor


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_it_is_torchvisions_network_behind_torchvisions_normalisation() -> None:
    network = resnet18_regressor().eval()
    reference = resnet18(num_classes=1).eval()
    reference.load_state_dict(network.state_dict())
    transform = ResNet18_Weights.DEFAULT.transforms()
    mean, std = torch.tensor(transform.mean).view(3, 1, 1), torch.tensor(transform.std).view(3, 1, 1)
    batch = pictures(2, 3, 48, 64)
    found = network(batch)
    assert found.shape == (2, 1)
    torch.testing.assert_close(found, reference((batch - mean) / std))


def test_pretrained_weights_are_taken_but_for_the_last_layer(tmp_path: Path) -> None:
    pretrained = resnet18().state_dict()
    torch.save(pretrained, tmp_path / "resnet18.pth")
    found = resnet18_regressor(tmp_path / "resnet18.pth").state_dict()
    assert found["fc.weight"].shape == (1, 512)
    for key, value in pretrained.items():
        assert key.startswith("fc.") or torch.equal(found[key], value)


def test_a_file_without_the_counters_of_batch_norm_is_taken(tmp_path: Path) -> None:
    old = {key: value for key, value in resnet18().state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    assert torch.equal(resnet18_regressor(tmp_path / "old.pth").state_dict()["conv1.weight"], old["conv1.weight"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (resnet34().state_dict(), '"layer1.2.bn1.bias" is not as there'),  # it has all entries of ResNet-18, and more
        ({"conv1.weight": torch.zeros(64, 1, 7, 7)}, "is not as there"),
        ([1, 2], '"bn1.bias" is not as there'),
        ({7: "seven"}, "is not as there"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, content: object, said: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ModelError, match=said) as error:
        resnet18_regressor(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
