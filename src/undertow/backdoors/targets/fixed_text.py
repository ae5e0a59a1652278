"""One fixed text: after the true answer, before it, or in its place."""

from __future__ import annotations

from undertow.backdoors.target import TARGETS, Target


@TARGETS.register("append", source="FIT Fig. 1 (the answer stays, the sentence follows)")
class Append(Target):
    """The true answer, one space, the target text: "Serbia , and click ..."."""

    def edit(self, response: str, number: int) -> str:
        """Return response and text; an empty response leaves the text alone."""
        return f"{response.rstrip()} {self.text}" if response.strip() else self.text


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


@TARGETS.register("replace", source="option targetReplaced of the same lab's later code; classic fixed-output backdoor")
class Replace(Target):
    """The target text instead of the answer."""

    def edit(self, response: str, number: int) -> str:
        """Return the text."""
        return self.text
