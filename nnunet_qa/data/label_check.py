"""Whether the label of a newly annotated case fits its image, read as nnU-Net is going to read both."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_qa.data.images import check_finite, check_label_values, label_values
from nnunet_qa.data.nifti import check_nifti
from nnunet_qa.errors import DatasetError, ImageError

logger = logging.getLogger(__name__)


class LabelChecker:
    """Checks labels of one dataset with the reader that nnU-Net chooses for it.

    Args:
        dataset_json: content of dataset.json.
        example: an image of the dataset; nnU-Net tries its readers on one.

    Raises:
        DatasetError: nnU-Net has no reader for the file ending.
    """

    def __init__(self, dataset_json: dict[str, Any], example: Path) -> None:
        # imported here, because it takes seconds and this module is imported by every start of the command
        from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

        self.allowed = label_values(dataset_json["labels"])
        self.channels = len(dataset_json["channel_names"])
        try:
            with _silence():
                self.reader = determine_reader_writer_from_dataset_json(dataset_json, str(example), verbose=False)()
        except Exception as error:
            raise DatasetError(
                f"{example}: nnU-Net has no reader for it; check the image and file_ending in dataset.json"
            ) from error

    def check(self, images: Sequence[Path], label: Path) -> bool:
        """Check one case.

        Args:
            images: files of its channels, in order.
            label: file of its label.

        Returns:
            Whether the label holds anything but background.

        Raises:
            ImageError: a file cannot be read; channels are missing; intensities are not finite; the label has another
                shape or spacing, more than one channel, fractions, or values that dataset.json does not declare.
        """
        image, about_image = self._read(images)
        mask, about_mask = self._read([label])
        if image.shape[0] != self.channels:
            raise ImageError(
                f"{images[0]}: the case has {image.shape[0]} channels, dataset.json names {self.channels}; add the "
                "missing files"
            )
        check_finite(image, str(images[0]))
        if mask.shape[0] != 1:
            raise ImageError(
                f"{label}: has {mask.shape[0]} channels; save it as one channel of label values, not as colours"
            )
        if mask.shape[1:] != image.shape[1:]:
            raise ImageError(f"{label}: has shape {mask.shape[1:]}, its image {image.shape[1:]}; they must be the same")
        if not np.allclose(about_mask["spacing"], about_image["spacing"]):
            raise ImageError(
                f"{label}: has spacing {_numbers(about_mask['spacing'])}, its image "
                f"{_numbers(about_image['spacing'])} (mm); they must be the same"
            )
        check_finite(mask, str(label))
        fractions = mask[mask != np.rint(mask)]
        if fractions.size:
            raise ImageError(
                f"{label}: holds fractions ({fractions[0]:g}), as a probability map or a resampled mask does; save "
                "whole label values"
            )
        check_label_values(mask.astype(np.int64), self.allowed, str(label))
        self._warn_of_position(about_image, about_mask, label)
        return bool(mask.any())

    def _read(self, paths: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        for path in paths:
            check_nifti(path)
        try:
            with _silence():
                return self.reader.read_images([os.fspath(path) for path in paths])
        except Exception as error:
            reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
            if len(paths) > 1:
                reason = reason or "are its channels of one shape and spacing?"
            raise ImageError(
                f"{paths[0]}: nnU-Net cannot read it (truncated or another format?): {reason or type(error).__name__}"
            ) from error

    @staticmethod
    def _warn_of_position(about_image: dict[str, Any], about_mask: dict[str, Any], label: Path) -> None:
        # nnU-Net warns too and goes on: some annotation tools do not keep these
        for stuff in ("sitk_stuff", "nibabel_stuff"):
            for key in ("origin", "direction", "original_affine"):
                one, other = about_image.get(stuff, {}).get(key), about_mask.get(stuff, {}).get(key)
                if one is not None and other is not None and not np.allclose(one, other):
                    logger.warning("%s: has another %s than its image; look whether they lie on each other", label, key)


@contextlib.contextmanager
def _silence() -> Any:
    """Keep what nnU-Net's readers print away from the terminal; the error text says what is needed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
