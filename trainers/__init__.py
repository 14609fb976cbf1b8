"""The trainers that `nnUNetv2_train -tr` finds through `external/`."""

from . import one_line_errors
from .cross_pseudo import CrossPseudoTrainer
from .fcn import FCNTrainer
from .interactive import InteractiveTrainer
from .mean_teacher import MeanTeacherTrainer
from .paper_limited_data import PaperUNetTrainer
from .paper_qu_net_plus_plus import PaperQUNetPlusPlusTrainer, PaperQUNetTrainer
from .qa_semi_trainer import QAsemiTrainer
from .qu_net_plus_plus import QUNetPlusPlusTrainer
from .restoration import RestorationTrainer
from .variants import (
    FCNTrainer_5epochs,
    FCNTrainer_50epochs,
    FCNTrainer_250epochs,
    QAsemiTrainer_5epochs,
    QAsemiTrainer_50epochs,
    QAsemiTrainer_250epochs,
)

__all__ = [
    "CrossPseudoTrainer",
    "FCNTrainer",
    "FCNTrainer_5epochs",
    "FCNTrainer_50epochs",
    "FCNTrainer_250epochs",
    "InteractiveTrainer",
    "MeanTeacherTrainer",
    "PaperQUNetPlusPlusTrainer",
    "PaperQUNetTrainer",
    "PaperUNetTrainer",
    "QAsemiTrainer",
    "QAsemiTrainer_5epochs",
    "QAsemiTrainer_50epochs",
    "QAsemiTrainer_250epochs",
    "QUNetPlusPlusTrainer",
    "RestorationTrainer",
    "one_line_errors",
]
