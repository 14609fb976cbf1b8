"""The table of series in a zip of UK Biobank, `manifest.csv` (older: `manifest.cvs`), whose dates break its rows."""

from __future__ import annotations

import csv
import re

from nnunet_qa.errors import DatasetError

NAMES = ("manifest.csv", "manifest.cvs")
_FILE = "filename"
_SERIES = ("series discription", "series description", "seriesdescription")  # the first is how UK Biobank spells it
_DATE = re.compile(r"\b([A-Z][a-z]{2,8}\.? \d{1,2}), ?(?=\d{4}\b)")


def read_manifest(content: bytes, name: str) -> dict[str, str]:
    r"""Series of each file.

    Dates such as `May 11, 2016` stand there without quotes; their comma is taken out before the rows are parted. Rows
    that still have other columns than the header are passed over: the DICOM files say the same.

    Args:
        content: of the file.
        name: for errors.

    Raises:
        DatasetError: the columns `filename` or `series discription` are missing.

    >>> read_manifest(b"filename,date,series discription\na.dcm,May 11, 2016,CINE_segmented_SAX_b1\n", "manifest.csv")
    {'a.dcm': 'CINE_segmented_SAX_b1'}
    """
    text = _DATE.sub(r"\1 ", content.decode("utf-8-sig", errors="replace")).replace("\0", "")
    try:
        rows = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise DatasetError(f"{name}: is no table that can be read: {error}") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    series = next((column for column in _SERIES if column in header), None)
    if _FILE not in header or series is None:
        raise DatasetError(  # its first row may be a patient's, so it is not shown
            f'{name}: lacks the column "{_FILE}" or "{_SERIES[0]}" (its first row has {len(header)} columns)'
        )
    file_column, series_column = header.index(_FILE), header.index(series)
    return {
        row[file_column].strip(): row[series_column].strip()
        for row in rows[1:]
        if len(row) == len(header) and row[file_column].strip()
    }
