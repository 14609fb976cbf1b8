"""Volume or area of each structure over the cardiac cycle, from labels: what paper 003 (semiQCSeg) judges a series by.

What is kept of a series is the number of labelled pixels in each slice of each frame; volumes, areas and clinical
measures all follow from these and the spacing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np

from nnunet_qa.errors import CurveError, SelectionError, nearest

Kind = Literal["volume", "area"]
EndDiastole = Literal["first", "largest"]
UNITS: Mapping[str, str] = MappingProxyType({"volume": "mL", "area": "mm²"})
_STRUCTURE = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """Which label value is which structure, and what its curve is; 0 is background.

    Attributes:
        name: one of `SCHEMES`, or "custom".
        values: label value of each structure, 1 or more. Clinical measures know `lv`, `myocardium` and `rv`.
        kind: "volume" for stacks (mL), "area" for series of one slice (mm²).
        end_diastole: the frame at end-diastole: the first, as UK Biobank triggers, or that with the largest volume of
            the left ventricle.
    """

    name: str
    values: Mapping[str, int]
    kind: Kind
    end_diastole: EndDiastole

    @classmethod
    def parse(cls, text: str, *, kind: str | None = None, end_diastole: str | None = None) -> LabelScheme:
        """The scheme that a text means: the name of one, or structures with their values, see `custom`.

        Args:
            text: see above.
            kind: of a custom scheme; None for what `custom` takes.
            end_diastole: of a custom scheme; None for what `custom` takes.

        Raises:
            SelectionError: as `named` and `custom`; or a named scheme is given another kind or end-diastole.

        >>> LabelScheme.parse("acdc").name, LabelScheme.parse("lv=1,rv=3").name
        ('acdc', 'custom')
        """
        given = {"kind": kind, "end_diastole": end_diastole}
        settings = {name: value for name, value in given.items() if value is not None}
        if "=" in text:
            return cls.custom(text, **settings)  # type: ignore[arg-type]  # which values there are it says itself
        scheme = cls.named(text)
        if settings:
            raise SelectionError(
                f'the label scheme "{text}" has its own kind and end-diastole; leave out {" and ".join(settings)}, or '
                "write your own, such as lv=1,myocardium=2,rv=3"
            )
        return scheme

    @classmethod
    def named(cls, name: str) -> LabelScheme:
        """A scheme by its name.

        Raises:
            SelectionError: there is no such scheme.
        """
        if name not in SCHEMES:
            raise SelectionError(
                f'unknown label scheme "{name}"{nearest(name, SCHEMES)}; schemes are {", ".join(SCHEMES)}, or write '
                "your own, such as lv=1,myocardium=2,rv=3"
            )
        return SCHEMES[name]

    @classmethod
    def custom(cls, text: str, *, kind: Kind = "volume", end_diastole: EndDiastole = "largest") -> LabelScheme:
        """A scheme from a text such as "lv=1,rv=3".

        Raises:
            SelectionError: the text is not of this form, names a structure twice, or two share a value.

        >>> dict(LabelScheme.custom("lv=1, rv=3").values)
        {'lv': 1, 'rv': 3}
        """
        values: dict[str, int] = {}
        for part in text.split(","):
            structure, _, value = (piece.strip() for piece in part.partition("="))
            if not _STRUCTURE.fullmatch(structure) or not value.isdecimal() or int(value) == 0:
                raise SelectionError(
                    f'label scheme "{text}": "{part.strip()}" is not structure=value with a name in small letters and '
                    "a value from 1 up; write for example lv=1,myocardium=2,rv=3"
                )
            if structure in values or int(value) in values.values():
                raise SelectionError(
                    f'label scheme "{text}": "{part.strip()}" repeats a structure or a value; give each one once'
                )
            values[structure] = int(value)
        for given, known, what in ((kind, Kind, "kind of curve"), (end_diastole, EndDiastole, "end-diastole")):
            if given not in get_args(known):
                raise SelectionError(f'unknown {what} "{given}"; choose {" or ".join(get_args(known))}')
        return cls(name="custom", values=values, kind=kind, end_diastole=end_diastole)


SCHEMES: Mapping[str, LabelScheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            LabelScheme(name="ukbb", values={"lv": 1, "myocardium": 2, "rv": 3}, kind="volume", end_diastole="first"),
            LabelScheme(
                name="ukbb_ao",
                values={"ascending_aorta": 1, "descending_aorta": 2},
                kind="area",
                end_diastole="first",
            ),
            LabelScheme(name="acdc", values={"rv": 1, "myocardium": 2, "lv": 3}, kind="volume", end_diastole="largest"),
        )
    }
)
"""The named schemes: UK Biobank short axis and aorta, and ACDC."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Acquisition:
    """The labelled pixels of one cine series.

    Attributes:
        acquisition_id: what its files are called.
        subject_id: whose series it is.
        pixels: for structures of the scheme, int64 `(frames, slices)`, the labelled pixels of each slice.
        spacing: (z, y, x) in mm.
        scheme: what the structures and their curves are.
        frame_time: seconds between frames, where known.

    Raises:
        CurveError: fewer than two frames, a spacing that is not above 0, or several slices with a scheme of areas.
        SelectionError: a structure is not in the scheme.
    """

    acquisition_id: str
    subject_id: str
    pixels: Mapping[str, np.ndarray]
    spacing: tuple[float, float, float]
    scheme: LabelScheme
    frame_time: float | None = None

    def __post_init__(self) -> None:
        if not self.pixels:
            raise ValueError(f"{self.acquisition_id}: an acquisition needs the pixels of at least one structure")
        for structure, counts in self.pixels.items():
            if structure not in self.scheme.values:
                raise SelectionError(
                    f'{self.acquisition_id}: "{structure}" is not in the label scheme "{self.scheme.name}"'
                    f"{nearest(structure, self.scheme.values)}; it knows {', '.join(self.scheme.values)}"
                )
            if counts.ndim != 2 or counts.shape != self._shape or not np.issubdtype(counts.dtype, np.integer):
                raise ValueError(f"{structure}: needs whole numbers (frames, slices), found {counts.shape}")
        if self.frames < 2:
            raise CurveError(
                f"{self.acquisition_id}: has one frame only, which makes no curve; give the whole series, or a case "
                "table with the frame_index of each file"
            )
        if len(self.spacing) != 3 or not all(math.isfinite(size) and size > 0 for size in self.spacing):
            raise CurveError(
                f"{self.acquisition_id}: the spacing {self.spacing} is not three sizes above 0 mm; correct the file"
            )
        if self.scheme.kind == "area" and self._shape[1] != 1:
            raise CurveError(
                f"{self.acquisition_id}: has {self._shape[1]} slices, but the area over time needs a series of one; "
                "choose a label scheme of volumes"
            )

    @property
    def frames(self) -> int:
        """How many frames the cycle has."""
        return int(self._shape[0])

    @property
    def _shape(self) -> tuple[int, ...]:
        return next(iter(self.pixels.values())).shape

    def curve(self, structure: str) -> np.ndarray:
        """The curve of one structure, float64 `(frames,)`: V = pixels·dx·dy·dz·1e-3 mL, or area = pixels·dx·dy mm².

        Raises:
            CurveError: there is no such structure.
        """
        if structure not in self.pixels:
            raise CurveError(
                f'{self.acquisition_id}: has no structure "{structure}"{nearest(structure, self.pixels)}; '
                f"it has {', '.join(self.pixels)}"
            )
        z, y, x = self.spacing
        size = z * y * x * 1e-3 if self.scheme.kind == "volume" else y * x
        return self.pixels[structure].sum(axis=1) * size

    def curves(self) -> dict[str, np.ndarray]:
        """The curves of all structures; see `curve`."""
        return {structure: self.curve(structure) for structure in self.pixels}


def acquisition_of(
    labels: np.ndarray,
    spacing: tuple[float, float, float],
    scheme: LabelScheme,
    *,
    acquisition_id: str,
    subject_id: str = "",
    frame_time: float | None = None,
) -> Acquisition:
    """Count the labelled pixels of a series.

    Args:
        labels: label values `(frames, slices, rows, columns)`.
        spacing: (z, y, x) in mm.
        scheme: which value is which structure.
        acquisition_id: name of the series, for errors and tables.
        subject_id: whose series it is; the series itself where empty.
        frame_time: seconds between frames, where known.

    Raises:
        CurveError: another number of axes, a label value that the scheme does not know, or as `Acquisition`.
    """
    if labels.ndim != 4:
        raise CurveError(
            f"{acquisition_id}: has {labels.ndim} axes, a series has 4 (frames, slices, rows, columns); frames in "
            "files of their own are put together by a case table"
        )
    return Acquisition(
        acquisition_id=acquisition_id,
        subject_id=subject_id or acquisition_id,
        pixels=count_pixels(labels, scheme, name=acquisition_id),
        spacing=spacing,
        scheme=scheme,
        frame_time=frame_time,
    )


def count_pixels(labels: np.ndarray, scheme: LabelScheme, *, name: str) -> dict[str, np.ndarray]:
    """Labelled pixels of each structure and slice.

    Args:
        labels: label values `(..., rows, columns)`.
        scheme: which value is which structure.
        name: of the series or file, for the error.

    Returns:
        For each structure of the scheme, int64 of the shape of the leading axes.

    Raises:
        CurveError: a value is neither 0 nor in the scheme.
    """
    leading = labels.shape[:-2]
    slices = labels.reshape(math.prod(leading), -1)
    values = (0, *scheme.values.values())
    # A slice at a time stays in the cache: three times as fast as histograms or comparing all at once.
    found = [[np.count_nonzero(pixels == value) for value in values] for pixels in slices]
    counts = np.array(found, dtype=np.int64).reshape(-1, len(values))
    if counts.sum() != labels.size:
        unknown = ", ".join(f"{value:g}" for value in np.setdiff1d(labels, values)[:5])
        known = ", ".join(f"{structure} {value}" for structure, value in scheme.values.items())
        raise CurveError(
            f'{name}: label value {unknown} is not in the label scheme "{scheme.name}" ({known}); correct the mask or '
            "choose another scheme"
        )
    return {structure: counts[:, column].reshape(leading) for column, structure in enumerate(scheme.values, start=1)}
