"""ResNet-18 with one output, the regressor of quality codes (paper 002, section on the QA discriminator).

The paper takes the network as torchvision has it. Weights come from a file that the user names or from chance; nothing
is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models.resnet import BasicBlock, ResNet

from nnunet_qa.data.checkpoint import read_tensors
from nnunet_qa.errors import ModelError


class CodeRegressor(ResNet):
    """torchvision's ResNet-18 with one output: pictures `(batch, 3, rows, columns)` in [0, 1] in, `(batch, 1)` out."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=1)
        # the colours as torchvision's pretrained weights expect them; buffers, since making them in each step would
        # hold up the GPU
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One unbounded number a picture."""
        return super().forward((x - self.mean) / self.std)


def resnet18_regressor(weights: Path | None = None) -> CodeRegressor:
    """Build the network; initial weights are drawn from torch's global generator.

    Args:
        weights: state dict of torchvision's ResNet-18, such as the one trained on ImageNet; its last layer is left out.

    Raises:
        ModelError: the file cannot be read, holds more than tensors, or is of another network.
        DependencyError: torch is too old to read a file safely.
    """
    network = CodeRegressor()
    if weights is None:
        return network
    content = read_tensors(weights)
    given = {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    given = {key: value for key, value in given.items() if not key.startswith("fc.")}
    own = {key: value.shape for key, value in network.state_dict().items() if not key.startswith("fc.")}
    # torchvision's oldest file has no counters of batch norm, and nothing uses them
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    wrong = sorted(key for key in needed | set(given) if getattr(given.get(key), "shape", None) != own.get(key))
    if wrong:
        raise ModelError(
            f'{weights}: holds no weights of torchvision\'s ResNet-18 ("{wrong[0]}" is not as there); name a file that '
            "torchvision.models.resnet18 can load"
        )
    network.load_state_dict(given, strict=False)
    return network
