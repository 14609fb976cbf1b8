from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.errors import CurveError
from nnunet_qa.quality.pulse_pressure import with_pressures
from tests.quality.easy_curves import acquisition

SOME = [
    acquisition({"ascending_aorta": np.full((3, 1), 50)}, name=name, subject=subject, scheme="ukbb_ao")
    for name, subject in (("a", "S1"), ("b", "S1"), ("c", "S2"))
]


def test_an_acquisition_comes_before_its_subject() -> None:
    missing: list[str] = []
    found = list(with_pressures(SOME, {"b": 30.0, "S1": 40.0}, missing=missing.append))
    assert [one for one, _ in found] == SOME
    np.testing.assert_equal([pressure for _, pressure in found], [40.0, 30.0, np.nan])
    assert missing == ["c"]


def test_none_is_looked_for_where_none_is_asked_for() -> None:
    missing: list[str] = []
    assert list(with_pressures(SOME, None, missing=missing.append)) == [(one, None) for one in SOME]
    assert missing == []


@pytest.mark.parametrize(("known", "named"), [({"S9": 1.0, "S8": 1.0}, '"S8", "S9"'), ({}, "nobody")])
def test_pressures_of_others_are_refused(known: dict[str, float], named: str) -> None:
    assert list(with_pressures([], known)) == []
    with pytest.raises(CurveError, match=f'is of {named}, none of any series here, such as "c" of the subject "S2"'):
        list(with_pressures(SOME, known))
