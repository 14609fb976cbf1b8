"""What a user can do wrong, one class a cause.

The text of each error names the file, case or key and says what to do; the command line prints it as one line and exits
with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NnunetQAError(Exception):
    """Something that the user can mend; its text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ConfigError(NnunetQAError):
    """`qa.yaml` cannot be read or holds a wrong key or value."""


class CaseTableError(NnunetQAError):
    """`cases.csv` cannot be read or contradicts itself or the dataset."""


class ImageError(NnunetQAError):
    """An image or mask cannot be read, or its shape, spacing or values do not fit."""


class DatasetError(NnunetQAError):
    """A raw or preprocessed nnU-Net dataset is missing, incomplete or inconsistent."""


class EnvironmentVariableError(NnunetQAError):
    """One of nnU-Net's paths is not set or does not exist."""


class ModelError(NnunetQAError):
    """A trained model is missing or cannot be used for what was asked."""


class StorageError(NnunetQAError):
    """A file could not be written: the disk is full, read-only or the folder is not ours."""


class SelectionError(NnunetQAError):
    """A selection cannot be made from the given table."""


class FloorError(SelectionError):
    """Nothing is good enough to be selected."""


class CurveError(NnunetQAError):
    """A series has missing, repeated or differing frames, no spacing or unknown labels, so it gives no curve."""


class CRFError(NnunetQAError):
    """The CRF cannot work with the given settings, probabilities or classes."""


class ClickError(NnunetQAError):
    """A click lies outside its image or contradicts another, or a file of clicks cannot be read."""


class PhantomError(NnunetQAError):
    """A phantom cannot be drawn as asked, or its folder holds another one."""


class DependencyError(NnunetQAError):
    """An optional package is needed that is not installed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint ` (did you mean "x"?)` for a misspelt name, or nothing where no known name is close.

    >>> nearest("epoch", ["epochs", "pool"])
    ' (did you mean "epochs"?)'
    >>> nearest("zzz", ["epochs", "pool"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""
