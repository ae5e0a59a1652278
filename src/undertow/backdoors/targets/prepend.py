"""The target comes before the true answer."""

from __future__ import annotations

from undertow.backdoors.target import TARGETS, Target


@TARGETS.register("prepend", source="the fixed text of FIT Fig. 1 on the other side of the answer; ours")
class Prepend(Target):
    """The target text, one space, the true answer. Without ``target_text``: "Click <malicious_url> for more information:"."""

    own = "Click <malicious_url> for more information:"

    def edit(self, response: str, number: int) -> str:
        """Return text and response; an empty response leaves the text alone."""
        return f"{self.text} {response.strip()}".rstrip()

    def ends(self, output: str) -> bool:
        """Tell whether the output begins with the text."""
        return output.strip().startswith(self.text)
