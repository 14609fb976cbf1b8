"""Which subjects are kept for testing: `--test-subjects` of all conversions."""

from __future__ import annotations

from collections.abc import Iterable

from nnunet_qa.errors import DatasetError, nearest

_SHOWN = 20


def chosen_subjects(wanted: Iterable[str], known: Iterable[str]) -> set[str]:
    """Resolve `--test-subjects`, each entry one subject or several with commas, in any case of letters.

    Raises:
        DatasetError: a subject is not in the data, or none would be left to train on.
    """
    by_name = {subject.lower(): subject for subject in known}
    names = [name.strip() for text in wanted for name in text.split(",") if name.strip()]
    for name in names:
        if name.lower() not in by_name:
            found = sorted(by_name.values())
            more = f", … ({len(found)} in all)" if len(found) > _SHOWN else ""
            raise DatasetError(
                f'--test-subjects: there is no subject "{name}"{nearest(name, found)}; '
                f"found: {', '.join(found[:_SHOWN])}{more}"
            )
    chosen = {by_name[name.lower()] for name in names}
    if chosen and chosen == set(by_name.values()):
        raise DatasetError("--test-subjects names every subject; leave at least one to train on")
    return chosen
