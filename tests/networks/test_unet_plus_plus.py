from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nnunet_qa.networks.unet_plus_plus import PaperUNet, PaperUNetPlusPlus

SMALL = (4, 6, 8, 10, 12)


def counted(network: nn.Module) -> int:
    """Parameters, and the running mean and variance of batch norm, which Keras counts with them."""
    buffers = [value for name, value in network.named_buffers() if not name.endswith("num_batches_tracked")]
    return sum(value.numel() for value in [*network.parameters(), *buffers])


def by_hand(features: list[int], *, nested: bool) -> int:
    """The count from the definition: every node X(i,j) written out."""

    def block(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + outputs + 9 * outputs * outputs + outputs

    depth = len(features)
    total = 0
    for i in range(1, depth + 1):
        total += block(1 if i == 1 else features[i - 2], features[i - 1])
        if i < depth or not nested:
            total += 2 * 4 * features[i - 1]  # two batch norms of scale, shift, mean and variance
    for i in range(1, depth):
        for j in range(2, depth - i + 2):
            if not nested and i + j != depth + 1:
                continue
            here, below = features[i - 1], features[i]
            total += 4 * below * here + here  # 2×2 up-convolution to this node's filters
            before = j - 1 if nested else 1
            total += block((before + 1) * here, here)
    heads = depth - 1 if nested else 1
    return total + heads * (features[0] + 1)


def test_the_papers_parameter_counts() -> None:
    unet, nested = PaperUNet(), PaperUNetPlusPlus()
    assert counted(unet) == by_hand([32, 64, 128, 256, 512], nested=False) == 7_767_457
    assert counted(nested) == by_hand([32, 64, 128, 256, 512], nested=True) == 9_045_540
    assert sum(value.numel() for value in nested.parameters()) == 9_043_620


@pytest.mark.parametrize("features", [[4, 8], [3, 5, 7], [4, 6, 8, 10, 12, 14]])
def test_other_depths(features: list[int]) -> None:
    assert counted(PaperUNet(features=features)) == by_hand(features, nested=False)
    network = PaperUNetPlusPlus(features=features)
    assert counted(network) == by_hand(features, nested=True)
    size = 2 ** (len(features) - 1)
    assert [tuple(output.shape) for output in network(torch.zeros(2, 1, size, 2 * size))] == [
        (2, 1, size, 2 * size)
    ] * (len(features) - 1)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_all_heads_have_full_resolution_and_gradients(dimensions: int) -> None:
    network = PaperUNetPlusPlus(input_channels=2, num_outputs=3, features=SMALL, dimensions=dimensions)
    x = torch.randn(2, 2, *[32, 16, 16][:dimensions])
    outputs = network(x)
    assert [output.shape for output in outputs] == [(2, 3, *x.shape[2:])] * 4
    sum(output.square().mean() for output in outputs).backward()
    for name, value in network.named_parameters():
        assert value.grad is not None, name
        assert value.grad.any(), name


def test_each_head_reads_its_own_node_finest_first() -> None:
    """Head k of the list is fed by X(1, 5 − k): only it loses its output when that node is silenced."""
    network = PaperUNetPlusPlus(features=SMALL).eval()
    x = torch.randn(1, 1, 32, 32)
    before = network(x)
    for number, head in enumerate(network.decoder.seg_layers):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        after = network(x)
        place = 3 - number
        assert not after[place].any()
        assert torch.equal(after[0], before[0]) == (place != 0)
    # X(1,2) comes from X(1,1) and X(2,1) alone: deeper nodes do not reach it, all reach X(1,5)
    network = PaperUNetPlusPlus(features=SMALL).eval()
    for output, reached in zip(network(x), (True, False, False, False), strict=True):
        network.zero_grad()
        output.sum().backward(retain_graph=True)
        grad = network.encoder.blocks[4][0].weight.grad
        assert (grad is not None and bool(grad.any())) == reached


@pytest.mark.parametrize("kind", [PaperUNet, PaperUNetPlusPlus])
def test_the_switch_of_nnunet(kind: Any) -> None:
    network = kind(features=SMALL).eval()
    x = torch.randn(1, 1, 16, 16)
    outputs = network(x)
    assert len(outputs) == len(network.decoder.seg_layers) == (1 if kind is PaperUNet else 4)
    network.decoder.deep_supervision = False
    assert torch.equal(network(x), outputs[0])


def test_batch_norm_stands_behind_the_relus_of_the_encoder_alone() -> None:
    for kind, blocks in ((PaperUNet, 5), (PaperUNetPlusPlus, 4)):
        network = kind(features=SMALL)
        norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms == [f"encoder.blocks.{row}.{place}" for row in range(blocks) for place in (2, 5)]
        for row in range(blocks):
            block = network.encoder.blocks[row]
            assert isinstance(block[1], nn.ReLU)
            assert isinstance(block[4], nn.ReLU)


def test_dropout_is_where_the_paper_has_it() -> None:
    """It changes X(5,1) and what goes down from X(4,1), and leaves the skips and X(1,2) to X(1,4) alone."""
    network = PaperUNetPlusPlus(features=SMALL)
    x = torch.randn(1, 1, 32, 32)
    network.eval()
    assert torch.equal(network(x)[0], network(x)[0])
    network.encoder.dropout.train()
    first, second = network(x), network(x)
    assert not torch.equal(first[0], second[0])
    for number in (1, 2, 3):
        assert torch.equal(first[number], second[number])
    nodes, again = network.encoder(x), network.encoder(x)
    assert [torch.equal(*pair) for pair in zip(nodes, again, strict=True)] == [True] * 4 + [False]
    assert [type(module).__name__ for module in network.modules()].count("Dropout") == 1
    assert network.encoder.dropout.p == 0.5

    seen: list[torch.Tensor] = []
    network.encoder.pool.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    network.encoder(x)
    assert len(seen) == 4
    kept = seen[3] != 0
    assert torch.allclose(seen[3][kept], 2 * nodes[3][kept])  # what is kept is doubled
    assert 0.2 < kept.float().mean() / (nodes[3] != 0).float().mean() < 0.8


def test_softmax_with_the_implicit_background_is_the_sigmoid() -> None:
    torch.manual_seed(0)
    network = PaperUNetPlusPlus(features=SMALL, implicit_background=True).eval()
    assert counted(network) == by_hand(list(SMALL), nested=True)
    x = torch.randn(1, 1, 16, 16)
    two = network(x)[0]
    network.decoder.implicit_background = False
    one = network(x)[0]
    assert two.shape == (1, 2, 16, 16)
    assert torch.allclose(two.softmax(1)[:, 1:], one.sigmoid())


@pytest.mark.parametrize(("kind", "mebibytes"), [(PaperUNet, 135), (PaperUNetPlusPlus, 334)])
def test_the_memory_that_the_docs_name(kind: Any, mebibytes: int) -> None:
    """What autograd keeps of an image of 256×256, from one of 64×64."""
    network = kind(implicit_background=True)
    weights = {value.data_ptr() for value in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        _outputs = network(torch.randn(1, 1, 64, 64))
    size = sum(value.untyped_storage().nbytes() for place, value in kept.items() if place not in weights)
    assert 16 * size / 2**20 == pytest.approx(mebibytes, abs=2)


def test_a_head_keeps_its_name_out_of_pretrained_weights() -> None:
    heads = [name for name in PaperUNetPlusPlus(features=SMALL).state_dict() if ".seg_layers." in name]
    assert heads == [f"decoder.seg_layers.{head}.{kind}" for head in range(4) for kind in ("weight", "bias")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"features": (8,)}, r"at least two numbers from 1 up, found \(8,\)"),
        ({"features": (8, 0)}, "from 1 up"),
        ({"dimensions": 1}, "must be 2 or 3, found 1"),
        ({"num_outputs": 2, "implicit_background": True}, "goes with one output, found 2"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PaperUNetPlusPlus(**arguments)
