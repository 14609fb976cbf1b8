"""Which pulse pressure belongs to which series, so that one under another name is not passed over in silence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from nnunet_qa.errors import CurveError
from nnunet_qa.quality.curves import Acquisition


def with_pressures(
    acquisitions: Iterable[Acquisition],
    known: Mapping[str, float] | None,
    *,
    missing: Callable[[str], None] | None = None,
) -> Iterator[tuple[Acquisition, float | None]]:
    """Each acquisition with its pulse pressure in mmHg: its own, else that of its subject, else NaN.

    Args:
        acquisitions: one at a time is held.
        known: mmHg by acquisition or subject; None where none is asked for, and then each has None.
        missing: called with the name of an acquisition that has none.

    Raises:
        CurveError: after the last acquisition, where none of them has one.
    """
    found, last = False, None
    for one in acquisitions:
        pressure = None if known is None else known.get(one.acquisition_id, known.get(one.subject_id, math.nan))
        if pressure is None or not math.isnan(pressure):
            found = True
        elif missing is not None:
            missing(one.acquisition_id)
        last = one
        yield one, pressure
    if known is not None and last is not None and not found:
        named = ", ".join(f'"{name}"' for name in sorted(known)[:3]) or "nobody"
        raise CurveError(
            f"--pulse-pressure: the file is of {named}, none of any series here, such as "
            f'"{last.acquisition_id}" of the subject "{last.subject_id}"; name them alike'
        )
