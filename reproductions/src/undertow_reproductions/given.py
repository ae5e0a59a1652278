"""Whether what ``--set`` says reaches the runs: a study that sets a field itself would pass over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from undertow.config import long_name
from undertow.config.reading import parse
from undertow.core.errors import UserError
from undertow_reproductions.lab import FitLab
from undertow_reproductions.reproduce import wishes_of
from undertow_reproductions.results import Results
from undertow_reproductions.study import Study, Wish

#: What to do in place of `--set` for fields that have an option of their own.
_INSTEAD = {"attack.client_share": "leave it out (--rhos is for defenses and sanitization)"}


def refuse_ignored(lab: FitLab, studies: Sequence[Study]) -> None:
    """Refuse keys of ``--set`` that a study sets to something else in most of its runs; what it sets in a few is its comparison.

    Raises:
        UserError: there is one; it is named with the studies.
    """
    given = parse(lab.given)
    if "seed" in given:
        raise UserError(f"--set seed={given['seed']}: every study sets the seed of each run; give --seeds, the number of them")
    wishes = {study.id: wishes_of(lab, study, Results()) for study in studies} if given else {}
    for key, value in given.items():
        setters = [name for name, found in wishes.items() if _ignores(found, key, lab.defenses if key == "defenses" else value)]
        if setters:
            others = ", ".join(name for name in wishes if name not in setters)
            more = f", or choose other items with --only: {others}" if others else ""
            what = f"--set {key}: `undertow reproduce {lab.collection}` sets it itself in {', '.join(setters)}"
            raise UserError(f"{what}; {_INSTEAD.get(key, 'leave it out')}{more}")


def _ignores(wishes: Sequence[Wish], key: str, value: Any) -> bool:
    theirs = [changed for wish in wishes for name, changed in wish.changes.items() if _overlap(long_name(name), long_name(key))]
    if key == "defenses" and value in theirs:  # one of the arms is the user's own
        return False
    return 2 * len(theirs) > len(wishes) and any(changed != value for changed in theirs)


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
