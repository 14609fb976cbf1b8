"""`conversion_report.csv` in the raw dataset: what became of each unit, what was left out, and why."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from nnunet_qa.files import write_csv

logger = logging.getLogger(__name__)

REPORT = "conversion_report.csv"
"""One row a unit and one a thing left out."""
CONVERTED, SKIPPED, LEFT_OUT = "converted", "skipped", "left out"


def write_report(folder: Path, rows: Iterable[tuple[str, str, int, str]]) -> None:
    """Write the report, and log whatever was not converted.

    Args:
        folder: of the raw dataset.
        rows: `name`, `status` (converted, skipped, left out), `cases` and `reason`.

    Raises:
        StorageError: the disk is full or read-only.
    """
    rows = [(utf8(name), status, cases, utf8(reason)) for name, status, cases, reason in rows]
    write_csv(folder / REPORT, pd.DataFrame(rows, columns=["name", "status", "cases", "reason"]))
    for name, status, _, reason in rows:
        if status != CONVERTED:
            logger.warning("%s: %s: %s", name, status, reason)


def summary(folder: Path) -> str:
    """One line on a converted dataset: `9 converted, 0 skipped, 2 left out; see …`."""
    counts = pd.read_csv(folder / REPORT, usecols=["status"])["status"].value_counts()
    shown = ", ".join(f"{counts.get(status, 0)} {status}" for status in (CONVERTED, SKIPPED, LEFT_OUT))
    return f"{shown}; see {folder / REPORT}"


def utf8(text: str) -> str:
    """The text as UTF-8 can hold it; bytes of a file name that are none are written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
