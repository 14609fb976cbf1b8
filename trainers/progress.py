"""nnU-Net's own logger with further quantities, the disagreement and the loss of pool images, also in progress.png."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from skimage.io import imread, imsave

from nnunet_qa.files import replacing

QUANTITIES = {
    "disagreement_val": "annotated cases (validation)",
    "disagreement_pool": "unlabelled pool",
    "qa_loss": "QA loss: squared quality code",
    "consistency_loss": "consistency with the mean teacher",
    "cross_pseudo_loss": "cross pseudo supervision",
    "injected_cases": "pool cases trained on with their predictions",
}
_PANELS = {
    "mean disagreement, 1 − Q": ("disagreement_val", "disagreement_pool"),
    "loss of pool images": ("qa_loss", "consistency_loss", "cross_pseudo_loss"),
    "injected cases": ("injected_cases",),
}


class QALocalLogger(LocalLogger):
    """Logs further quantities, one value an epoch each, and draws them below nnU-Net's progress.png.

    Args:
        keys: keys of `QUANTITIES` that the training logs.
        verbose: as in nnU-Net.
    """

    def __init__(self, keys: tuple[str, ...], verbose: bool = False) -> None:
        super().__init__(verbose)
        self.keys = keys
        self._add_keys()

    def load_checkpoint(self, checkpoint: dict) -> None:
        """Restore what was logged; epochs of a training that did not log these quantities count as not a number."""
        super().load_checkpoint(checkpoint)
        for key in set(QUANTITIES) - set(self.keys):  # a list that no longer grows would stop nnU-Net's plot
            self.my_fantastic_logging.pop(key, None)
        self._add_keys()

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw nnU-Net's progress.png, then put what we log below it."""
        super().plot_progress_png(output_folder)
        if not self.keys:
            return
        path = Path(output_folder) / "progress.png"
        picture = imread(path)
        size = {"width": picture.shape[1], "channels": picture.shape[2]}
        panels = [
            self._panel(title, keys, **size)
            for title, known in _PANELS.items()
            if (keys := [key for key in known if key in self.keys])
        ]
        with replacing(path) as temporary:
            imsave(temporary, np.concatenate([picture, *panels]), check_contrast=False)

    def _add_keys(self) -> None:
        epochs = len(self.my_fantastic_logging["epoch_end_timestamps"])
        for key in self.keys:
            values = self.my_fantastic_logging.setdefault(key, [])
            values += [math.nan] * (epochs - len(values))

    def _panel(self, title: str, keys: list[str], *, width: int, channels: int) -> np.ndarray:
        dpi = 100
        figure = Figure(figsize=(width / dpi, 18), dpi=dpi)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for key in keys:
            values = self.my_fantastic_logging[key]
            axes.plot(range(len(values)), values, linewidth=4, label=QUANTITIES[key])
        axes.set_xlabel("epoch", fontsize=30)
        axes.set_ylabel(title, fontsize=30)
        axes.tick_params(labelsize=25)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.4)
        axes.legend(loc=(0, 1), fontsize=25)
        figure.tight_layout()
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :channels]
