"""The trainers that `nnUNetv2_train -tr` finds through `external/`."""

from . import one_line_errors
from .qa_semi_trainer import QAsemiTrainer
from .variants import QAsemiTrainer_5epochs, QAsemiTrainer_50epochs, QAsemiTrainer_250epochs

__all__ = [
    "QAsemiTrainer",
    "QAsemiTrainer_5epochs",
    "QAsemiTrainer_50epochs",
    "QAsemiTrainer_250epochs",
    "one_line_errors",
]
