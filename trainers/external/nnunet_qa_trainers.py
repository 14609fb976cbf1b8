"""The one file in `nnUNet_extTrainer`: shows nnU-Net the installed trainers and defines nothing itself.

nnU-Net drops modules that it loaded from this folder, so a class defined here could not be pickled.
"""

from nnunet_qa.trainers import (
    CrossPseudoTrainer,
    FCNTrainer,
    FCNTrainer_5epochs,
    FCNTrainer_50epochs,
    FCNTrainer_250epochs,
    InteractiveTrainer,
    MeanTeacherTrainer,
    PaperQUNetPlusPlusTrainer,
    PaperQUNetTrainer,
    PaperUNetTrainer,
    QAsemiTrainer,
    QAsemiTrainer_5epochs,
    QAsemiTrainer_50epochs,
    QAsemiTrainer_250epochs,
    QUNetPlusPlusTrainer,
    RestorationTrainer,
    one_line_errors,
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
]

one_line_errors.install()
