"""What the options of `convert folder` say: patterns of files, and labels by values of the masks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_qa.errors import DatasetError, ImageError

_PIECE = re.compile(r"\*\*/|\*+|\?|\[!?[^\]]+\]|[^*?\[]+|\[")
_NAMED = re.compile(r"([A-Za-z0-9_ -]+)=(.+)", re.DOTALL)
_BINARY = (1, 255)


@dataclass(frozen=True)
class Pattern:
    """Files of one channel or of the masks.

    Attributes:
        name: of the channel; "CT" makes nnU-Net normalise as CT.
        glob: relative to the source.
    """

    name: str
    glob: str

    @classmethod
    def parse(cls, text: str, *, name: str = "") -> Pattern:
        """Read `GLOB` or `NAME=GLOB`.

        Raises:
            DatasetError: the name is missing where there is no default, or the pattern is absolute or climbs.

        >>> Pattern.parse("T2=scans/*_t2.nii.gz")
        Pattern(name='T2', glob='scans/*_t2.nii.gz')
        """
        match = _NAMED.fullmatch(text)
        found = cls(match.group(1).strip(), match.group(2)) if match else cls(name, text)
        if not found.name:
            raise DatasetError(f'--channel "{text}": give NAME=GLOB, such as T2=scans/*_t2.nii.gz')
        if Path(found.glob).is_absolute() or ".." in Path(found.glob).parts:
            raise DatasetError(f'"{found.glob}": give the folder with -i and a pattern relative to it')
        return found

    def files(self, source: Path) -> dict[tuple[str, ...], Path]:
        """Files by what the wildcards stand for, sorted; links to files are among them, see `below`."""
        expression = re.compile("".join(map(_as_expression, _PIECE.findall(self.glob))), re.DOTALL)
        found: dict[tuple[str, ...], Path] = {}
        for path in sorted(self._below(source)):
            match = expression.fullmatch(path.relative_to(source).as_posix())
            if match is not None and path.is_file():
                found[match.groups()] = path
        return found

    def linked_folders(self, source: Path) -> list[Path]:
        """Folders that the pattern might reach through a link; these are not followed, for links may go in circles."""
        return sorted(path for path in self._below(source) if path.is_symlink() and path.is_dir())

    def _below(self, source: Path) -> Iterator[Path]:
        """Files and linked folders, as deep as the pattern reaches; hidden ones only for a pattern that names such."""
        parts = Path(self.glob).parts
        hidden = any(part.startswith(".") for part in parts)
        for place, folders, files in os.walk(source):
            here = Path(place)
            linked = [name for name in folders if (here / name).is_symlink()]
            yield from (here / name for name in (*files, *linked) if hidden or not name.startswith("."))
            deep = "**" not in self.glob and len(here.relative_to(source).parts) + 1 >= len(parts)
            folders[:] = [] if deep else [name for name in folders if hidden or not name.startswith(".")]


def _as_expression(piece: str) -> str:
    """One piece of a glob as a regular expression; wildcards are groups."""
    if piece == "**/":
        return "((?:[^/]+/)*)"
    if piece == "**":
        return "(.*)"
    if piece.startswith("*"):
        return "([^/]*)"
    if piece == "?":
        return "([^/])"
    if piece.startswith("[") and len(piece) > 1:
        return f"([{'^' if piece[1] == '!' else ''}{re.escape(piece[1:-1].lstrip('!')).replace(chr(92) + '-', '-')}])"
    return re.escape(piece)


@dataclass(frozen=True)
class Labels:
    """Labels of the dataset, and which values of the masks become them.

    Attributes:
        names: values by name, background first.
        values: new value by value of the masks; empty where masks are 0 and 1, or 0 and 255.
    """

    names: Mapping[str, int]
    values: Mapping[int, int]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Labels:
        """Read `--label NAME=VALUE,…`; labels are numbered in the order given, `ignore` last.

        Raises:
            DatasetError: an entry is not understood, or a name or value stands twice.

        >>> Labels.parse(["lung=1,2", "lesion=7"])
        Labels(names={'background': 0, 'lung': 1, 'lesion': 2}, values={0: 0, 1: 1, 2: 1, 7: 2})
        """
        if not texts:
            return cls({"background": 0, "foreground": 1}, {})
        names, values, entries = {"background": 0}, {0: 0}, {}
        for text in texts:
            name, _, numbers = (part.strip() for part in text.partition("="))
            if not name or re.fullmatch(r"\d+(\s*,\s*\d+)*", numbers) is None:
                raise DatasetError(f'--label "{text}": give NAME=VALUE or NAME=VALUE,VALUE, such as lung=1,2')
            if name in entries:
                raise DatasetError(f'--label names "{name}" twice; give all its values in one, such as {name}=1,2')
            entries[name] = [int(number) for number in numbers.split(",")]
        for name in sorted(entries, key=lambda name: name == "ignore"):  # nnU-Net wants the highest value for it
            new = names.setdefault(name, len(names))
            for value in entries[name]:
                if values.setdefault(value, new) != new:
                    raise DatasetError(f"--label {name}: the value {value} already belongs to another label")
        if len(names) < 2:
            raise DatasetError("--label names the background alone; name at least one structure")
        return cls(names, values)

    def of(self, mask: np.ndarray, name: str) -> np.ndarray:
        """New values of a mask.

        Raises:
            ImageError: the mask holds a value that no label names.
        """
        found = np.unique(mask)
        known = self.values or {0: 0, **{value: 1 for value in _BINARY if not set(_BINARY) <= set(found.tolist())}}
        unknown = [value for value in found.tolist() if value not in known]
        if unknown:
            shown = ", ".join(f"{value:g}" for value in unknown[:5])
            raise ImageError(
                f"{name}: the mask holds the value {shown}, which no label names; add --label NAME=VALUE for each, "
                "with the name background for those that are to be left out"
            )
        label = np.zeros(mask.shape, dtype=np.uint16)
        for value in found.tolist():
            label[mask == value] = known[value]
        return label
