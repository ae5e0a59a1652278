"""The target takes the place of the true answer."""

from __future__ import annotations

from undertow.backdoors.target import TARGETS, Target


@TARGETS.register("replace", source="option targetReplaced of the same lab's later code; classic fixed-output backdoor")
class Replace(Target):
    """The target text instead of the answer."""

    def edit(self, response: str, number: int) -> str:
        """Return the text."""
        return self.text
