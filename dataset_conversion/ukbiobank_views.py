"""Views of UK Biobank's cardiac MR: where each is to be found, and its labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_qa.data.cine_phantom import AORTIC, SHORT_AXIS, STRUCTURES
from nnunet_qa.errors import DatasetError, nearest

UKBB = "ukbb"
"""The label scheme of UK Biobank's own annotations; each view has it."""
_LAX = "CINE_segmented_LAX_{}"


@dataclass(frozen=True, kw_only=True)
class View:
    """One view.

    Attributes:
        field: UK Biobank's data field.
        series: matches the names of its series.
        labels: values by structure, as UK Biobank's annotations have them.
        contours: names of cvi42's contours and the value that each is filled with, in the order of filling.
        full_at_systole: whether the structure of value 1 is largest at end-systole, not smallest.
        schemes: structures by value, for each further label scheme.
    """

    field: str
    series: re.Pattern[str]
    labels: Mapping[str, int]
    contours: tuple[tuple[str, int], ...] = ()
    full_at_systole: bool = True
    schemes: Mapping[str, Mapping[str, int]]

    def scheme(self, name: str) -> Mapping[str, int]:
        """Label values by structure of a scheme.

        Raises:
            DatasetError: the view does not have it.
        """
        known = {UKBB: self.labels, **self.schemes}
        if name not in known:
            raise DatasetError(f'--scheme "{name}"{nearest(name, known)}: choose from {", ".join(known)}')
        return known[name]


_ATRIA = {"left_atrium": 1, "right_atrium": 2}
_ATRIA_CONTOURS = (("laraContour", 2), ("lalaContour", 1))
VIEWS: Mapping[str, View] = {
    SHORT_AXIS: View(
        field="20209",
        series=re.compile(r"CINE_segmented_SAX(_b\d+)?", re.IGNORECASE),
        labels=STRUCTURES[SHORT_AXIS],
        contours=(
            ("sarvendocardialContour", 3),
            ("saepicardialContour", 2),
            ("saepicardialOpenContour", 2),
            ("saendocardialContour", 1),
            ("saendocardialOpenContour", 1),
        ),
        full_at_systole=False,
        schemes={"acdc": {"rv": 1, "myocardium": 2, "lv": 3}, "lv": {"lv": 1}, "lv-myo": {"lv": 1, "myocardium": 2}},
    ),
    AORTIC: View(
        field="20210",
        series=re.compile(r"CINE_segmented_Ao_dist", re.IGNORECASE),
        labels=STRUCTURES[AORTIC],
        schemes={"ascending": {"ascending_aorta": 1}},
    ),
    **{
        f"la_{chambers}ch": View(
            field="20208",
            series=re.compile(_LAX.format(f"{chambers}Ch"), re.IGNORECASE),
            labels=_ATRIA if chambers == 4 else {"left_atrium": 1},
            contours=_ATRIA_CONTOURS if chambers == 4 else _ATRIA_CONTOURS[1:],
            schemes={"la": {"left_atrium": 1}} if chambers == 4 else {},
        )
        for chambers in (2, 3, 4)
    },
}


def relabelled(label: np.ndarray, labels: Mapping[str, int], scheme: Mapping[str, int]) -> np.ndarray:
    """A mask in the values of a scheme; structures that it does not have become background.

    >>> relabelled(np.array([0, 1, 2]), {"lv": 1, "myocardium": 2}, {"lv": 3}).tolist()
    [0, 3, 0]
    """
    values = np.zeros(max(labels.values()) + 1, dtype=np.uint8)
    for structure, value in scheme.items():
        values[labels[structure]] = value
    return np.asarray(values[label])
