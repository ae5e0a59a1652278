"""CleanGen: a reference checks what the tuned model says, and replaces tokens that it finds far less likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from undertow.defenses.contexts import DecodingContext, Setting
from undertow.defenses.decoding.base import DecodingDefense
from undertow.defenses.parameters import number, one_of, whole
from undertow.defenses.registry import DEFENSES
from undertow.defenses.trusted import trusted_rows, tune

if TYPE_CHECKING:
    from undertow.inference.checked_decoding import Voice


@DEFENSES.register(
    "cleangen", source="Li et al. 2024, CleanGen, EMNLP, arXiv 2406.12257; the authors' code; adapter off as the reference: ours"
)
class CleanGen(DecodingDefense):
    """The tuned model drafts ``draft`` tokens greedily; the first x with P(x) / P_ref(x) >= α becomes the reference's best token.

    Both probabilities are given the same tokens before x. What was drafted after a replaced token is thrown away, and the tuned
    model goes on. Nothing is trained or dropped: the answers are changed, when the model is used. MA, ASR and FTR are measured on
    these answers, in every measured round.

    As the authors' code: k = 4 and α = 20, greedy drafts, one replacement a draft; and a draft that ends the answer, or reaches
    its limit, is not checked, so that an answer of fewer than k tokens never is. ``last`` = checked closes that gap; then k changes
    the time only. Ours: the reference, which in LoRA tuning costs nothing, the same base with its adapter off; or a trusted
    adapter. A reference that knows nothing of the task replaces what the task needs too, such as the end of a short answer.

    Args:
        alpha: α >= 0; .inf = the tuned model alone speaks, 0 with ``last`` = checked the reference alone.
        draft: k >= 1.
        adapter: folder of a trusted LoRA adapter in PEFT format for this base, as the reference; None = the base alone.
        trusted: an instruction file without poison, in any form that `data.name=instructions` reads; the reference is trained on it
            before round 1, from the run's initial adapter and by its training options.
        passes: over these samples, >= 1.
        last: of a draft that ends the answer: free as in the authors' code, or checked.

    Raises:
        ValueError: a parameter out of its range, or both ``adapter`` and ``trusted``.
    """

    def __init__(
        self,
        alpha: float = 20.0,
        draft: int = 4,
        adapter: str | None = None,
        trusted: str | None = None,
        passes: int = 30,
        last: str = "free",
    ) -> None:
        self.alpha = alpha if isinstance(alpha, float) and alpha == math.inf else number("alpha", alpha, least=0)
        self.draft = whole("draft", draft, 1)
        if adapter is not None and trusted is not None:
            raise ValueError("trusted trains a reference and adapter is one; give one of them")
        self.adapter, self.trusted = adapter, trusted
        self.passes = whole("passes", passes, 1)
        self.last = one_of("last", last, ("free", "checked"))
        self._reference: Voice | None = None

    def begin(self, setting: Setting) -> None:
        """Read or train the reference.

        Raises:
            UserError: the adapter or the trusted samples cannot be used.
        """
        from undertow.inference.checked_decoding import Voice
        from undertow.models.lora import initial_adapter
        from undertow.models.with_adapter import plain_adapter

        if self.adapter is not None:
            self._reference = Voice(*plain_adapter(setting.base, Path(self.adapter).expanduser()))
        elif self.trusted is not None:
            rows = trusted_rows(self.trusted, setting.template)
            start = initial_adapter(setting.base.layout, setting.seed)
            self._reference = Voice(tune(setting.base, setting.training, start, rows, self.passes, setting.seed))
        else:
            self._reference = Voice(None)

    def decode(
        self, prompts: Sequence[Sequence[int]], adapter: Tensor, context: DecodingContext
    ) -> tuple[list[list[int]], dict[str, Any]]:
        """Return the checked answers; the report counts the ``tokens`` said and those ``replaced``."""
        from undertow.inference.checked_decoding import Voice, checked_generate

        found = checked_generate(
            context.setting.base,
            Voice(adapter, context.layout),
            self._reference or Voice(None),
            prompts,
            draft=self.draft,
            alpha=self.alpha,
            max_new_tokens=context.max_new_tokens,
            batch_size=context.batch_size,
            check_last=self.last == "checked",
        )
        return found.outputs, {"tokens": found.tokens, "replaced": found.replaced}
