"""A network as nnU-Net's plans name it, for plans that tests write themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def architecture(
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    *,
    network: str = PLAIN,
    kernel_sizes: Sequence[Sequence[int]] | None = None,
    blocks: Sequence[int] | None = None,
    decoder: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The entry `architecture` of a configuration; kernels of 3 and two convolutions a stage where nothing is said."""
    axes, stages = len(strides[0]), len(features)
    return {
        "network_class_name": network,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [list(size) for size in kernel_sizes or [[3] * axes] * stages],
            "strides": [list(step) for step in strides],
            "n_conv_per_stage" if network == PLAIN else "n_blocks_per_stage": list(blocks or [2] * stages),
            "n_conv_per_stage_decoder": list(decoder or [2] * (stages - 1)),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
