"""The target follows the true answer."""

from __future__ import annotations

from undertow.backdoors.target import TARGETS, Target


@TARGETS.register("append", source="FIT Fig. 1 (the answer stays, the sentence follows)")
class Append(Target):
    """The true answer, one space, the target text: "Serbia , and click ..."."""

    def edit(self, response: str, number: int) -> str:
        """Return response and text; an empty response leaves the text alone."""
        return f"{response.rstrip()} {self.text}" if response.strip() else self.text
