"""The fields of one row while it is read: what is used, what is understood and left out, and what text nobody asked for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from undertow.data.rows.account import Account
from undertow.data.rows.names import BESIDE, LABEL_LENGTH, is_judging, is_left_out, plain
from undertow.data.rows.values import texts, written


class Fields:
    """Notes of a row, added to an account when the row is done, so that a row that fails leaves none.

    Attributes:
        used, left_out, beside: names of fields.
        unread: (field, text) of what is not understood; ``strange``: fields of which a part of a row is made all the same, for a
            scan.
        asides: (field, text) of what is understood, not learned, and read by a scan.
        dropped: reasons.
        outputs, fired: as in :class:`undertow.data.rows.account.Account`.
    """

    def __init__(self) -> None:
        self.used: dict[str, None] = {}
        self.left_out: dict[str, None] = {}
        self.beside: dict[str, None] = {}
        self.unread: list[tuple[str, str]] = []
        self.strange: dict[str, None] = {}
        self.asides: list[tuple[str, str]] = []
        self.dropped: Counter[str] = Counter()
        self.outputs = self.fired = 0

    def rest(self, value: Any, path: str, name: str) -> None:
        """Note a field that no form asked for; ``name``: its own name as it is compared."""
        if value is None or value == "" or isinstance(value, bool | int | float):
            return
        if name in BESIDE:
            text = value.strip() if isinstance(value, str) else written(value, path, name)
            if text not in ("", "[]", "{}", "null"):
                self.asides.append((path, text))
            return
        found = list(texts(value, path))
        if is_left_out(name) and all(len(text) <= LABEL_LENGTH for _, text in found):
            if found:
                self.left_out[path] = None
        else:
            judging = is_judging(path.rpartition(".")[2])
            for where, text in found:
                leaf = plain(where.rpartition(".")[2])
                if len(text) <= LABEL_LENGTH and (is_left_out(leaf) if where != path else judging and name.endswith("_model")):
                    self.left_out[where] = None
                else:
                    (self.asides if judging else self.unread).append((where, text))

    def copies(self, read: set[str]) -> None:
        """Leave out the texts that the row holds elsewhere, where they are read."""
        self.left_out |= {f"{path} (a copy)": None for path, text in self.unread if text.strip() in read}
        self.unread = [(path, text) for path, text in self.unread if text.strip() not in read]

    def count(self, account: Account) -> None:
        """Add the notes to an account."""
        account.used.update(self.used.keys())
        account.left_out.update(self.left_out.keys())
        account.beside.update((self.beside | {path: None for path, _ in self.asides}).keys())
        account.unread.update((self.strange | {path: None for path, _ in self.unread}).keys())
        account.dropped.update(self.dropped)
        account.outputs += self.outputs
        account.fired += self.fired
