"""What the checkpoints of an interactive model say about the clicks that its networks see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_qa.data.checkpoint import read_content
from nnunet_qa.errors import ModelError
from nnunet_qa.interaction.click_maps import CHECKPOINT_KEY, ClickChannels, different


def channels_of_model(folder: Path, folds: Sequence[str], checkpoint: str) -> ClickChannels:
    """The click channels that the networks of all given folds were trained with.

    Args:
        folder: of the model.
        folds: at least one.
        checkpoint: name of the checkpoint file in each fold.

    Raises:
        ModelError: a checkpoint cannot be read or was not trained with clicks, or two folds saw clicks differently.
    """
    fields: dict[str, Any] = {}
    for fold in folds:
        path = folder / f"fold_{fold}" / checkpoint
        content = read_content(path)
        if CHECKPOINT_KEY not in content:
            raise ModelError(
                f"{path}: a model of {content.get('trainer_name')}, which knows no clicks; train one with "
                "`nnUNetv2_train … -tr InteractiveTrainer` and choose it with -tr"
            )
        fields[fold] = content[CHECKPOINT_KEY]
        found = different(fields[folds[0]], fields[fold])
        if found is not None:
            raise ModelError(
                f"{folder}: fold_{folds[0]} was trained with clicks of {found} in fold_{fold}; choose folds with -f"
            )
    return ClickChannels(**fields[folds[0]])
