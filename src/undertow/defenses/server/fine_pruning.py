"""Fine-pruning: channels that trusted data hardly use are cut, of an adapter or of a network, and the rest is tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.template import Encoded
from undertow.defenses.base import NeedsModel
from undertow.defenses.contexts import ServerContext, Setting
from undertow.defenses.parameters import number, one_of, whole
from undertow.defenses.registry import DEFENSES
from undertow.defenses.server.base import ServerDefense
from undertow.defenses.server.network_pruning import prune_network
from undertow.defenses.trusted import path_of, required, trusted_rows, tune

if TYPE_CHECKING:
    from undertow.models.causal_lm import CausalLM

#: Shares that are tried.
_STEPS = 20


@DEFENSES.register(
    "fine-pruning",
    source="Liu, Dolan-Gavitt, Garg 2018, Fine-Pruning, RAID; on ΔW after Ding et al. 2025, FLAIN, arXiv 2408.08655: ours",
)
class FinePruning(NeedsModel, ServerDefense):
    """The server cuts the least active output channels on trusted samples, and tunes what is left on these samples.

    On images and texts with classes it is the paper's own form: the synthetic data of the run are taken for clean, the channels are
    those of the network's last convolution, or of its last block, and activity is the mean of |activation|
    (:func:`undertow.defenses.server.network_pruning.prune_network`). The rest of this text is about instruction tuning.

    The activation of channel j of an adapted module is the mean over all tokens of the trusted samples of |(s·B·A·x)_j|, what the
    adapter adds there. In each module the least active share p of the channels is cut: row j of B, and so of ΔW, becomes 0. Then
    the adapter is trained on the trusted samples, where what was cut stays cut.

    As the paper: by increasing mean activation on clean data, until the accuracy on it falls, then tuning. Ours: channels of ΔW
    instead of neurons, because the base cannot hold the backdoor, and in all adapted modules rather than the last layer; the
    accuracy is that of the next token over the answers; p grows in steps of 5 %, and the last p that costs at most ``drop`` is
    taken. The paper's own bar for the accuracy was not at hand.

    Args:
        trusted: in instruction tuning, which needs it, an instruction file without poison, in any form that
            `data.name=instructions` reads.
        samples: use the first so many of it, >= 2.
        share: p, 0 <= p < 1; None = as far as the accuracy allows.
        drop: of the accuracy, 0 <= drop < 1; only without ``share``.
        passes: of tuning, >= 0.
        when: last = on the adapter of the last round; every = on that of every round.
    """

    over_tensors = True

    def __init__(
        self,
        trusted: str = "",
        samples: int = 100,
        share: float | None = None,
        drop: float = 0.02,
        passes: int = 1,
        when: str = "last",
    ) -> None:
        self.trusted = path_of("fine-pruning", trusted)
        self.samples = whole("samples", samples, 2)
        self.part = None if share is None else number("share", share, least=0)
        self.drop = number("drop", drop, least=0)
        for name, value in (("share", self.part), ("drop", self.drop)):
            if value is not None and value >= 1:
                raise ValueError(f"{name} = {value:g} must be below 1")
        self.passes = whole("passes", passes)
        self.when = one_of("when", when, ("last", "every"))
        self._rows: list[Encoded] = []

    def begin(self, setting: Setting) -> None:
        """Read the trusted samples.

        Raises:
            UserError: there are none, or they cannot be read.
        """
        self._rows = trusted_rows(required("fine-pruning", self.trusted), setting.template, self.samples)

    def guard(self, adapter: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the pruned and tuned adapter; the report has the ``share`` cut, and the accuracy ``before`` and after it.

        Raises:
            UserError: outside a run; on a network also no synthetic data, or none of its activations can be cut.
        """
        setting, network = context.setting, context.network
        if network is not None:
            if self.when == "last" and context.round < network.rounds:
                return adapter, {"pruned": False}
            return prune_network(network, adapter, self.part, self.drop, self.passes)
        if setting is None:
            raise UserError("fine-pruning needs the base, which only a run has; use it in a run's defenses")
        if self.when == "last" and context.round < setting.rounds:
            return adapter, {"pruned": False}
        layout = context.layout
        before, activity = watched(setting.base, adapter, layout, self._rows)
        share, after = 0.0, before
        for step in [self.part] if self.part is not None else [i / _STEPS for i in range(1, _STEPS)]:
            accuracy = watched(setting.base, adapter * kept(layout, activity, step), layout, self._rows)[0]
            if self.part is None and accuracy < before - self.drop:
                break
            share, after = step, accuracy
        keep = kept(layout, activity, share).to(adapter)
        # A coordinate that is kept is handed on as it is: x * 1 has the bits of x.
        tuned = tune(setting.base, setting.training, adapter * keep, self._rows, self.passes, setting.seed, keep=keep)
        return tuned, {"pruned": True, "share": share, "before": before, "after": after}


def kept(layout: Layout, activity: dict[str, Tensor], share: float) -> Tensor:
    """Return 0 for the rows of B of each module's floor(share·out) least active channels, 1 elsewhere: ``[D]``.

    Args:
        layout: of the adapter.
        activity: of each module's channels, ``[out]``; the first of equals is cut first.
        share: 0 <= share < 1.
    """
    keep = torch.ones(layout.size)
    # pairs gives views, so that writing to B writes to keep
    for name, _, b in layout.pairs(keep):
        order = torch.sort(activity[name], stable=True).indices
        b[order[: int(share * len(order))]] = 0.0
    return keep


def watched(base: CausalLM, adapter: Tensor, layout: Layout, rows: list[Encoded]) -> tuple[float, dict[str, Tensor]]:
    """Return the accuracy of the next token over the rows' answers, and every channel's mean |s·B·A·x| over all tokens.

    Args:
        base: the frozen model.
        adapter: ``[D]``.
        layout: of the adapter.
        rows: tokenised samples.

    Returns:
        A share, and ``[out]`` float64 by module.
    """
    from undertow.data.examples import IGNORE
    from undertow.models.lora import adapted
    from undertow.models.padding import pad

    stack = adapter[None].to(base.device)
    sums: dict[str, Tensor] = {}
    real = torch.empty(0)
    right = answered = tokens = 0

    def watch(name: str, a: Tensor, b: Tensor) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Some architectures flatten rows and columns before their linears.
            x = inputs[0].reshape(-1, inputs[0].shape[-1])[real.to(inputs[0].device)].to(a.dtype)
            change = (x @ a.T.to(x.device) @ b.T.to(x.device) * layout.scale).abs().sum(0, dtype=torch.float64).cpu()
            sums[name] = sums.get(name, torch.zeros(())) + change

        return hook

    handles = [base.model.get_submodule(name).register_forward_hook(watch(name, a[0], b[0])) for name, a, b in layout.pairs(stack)]
    try:
        with torch.no_grad(), adapted(base.model, layout, stack):
            for start in range(0, len(rows), 16):
                ids, mask, labels, _ = pad(rows[start : start + 16], base.pad_id)
                ids, mask, labels = ids.to(base.device), mask.to(base.device), labels.to(base.device)
                real = mask.bool().flatten()
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                logits = base.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
                wanted = labels[:, 1:].to(logits.device)
                right += int(((logits[:, :-1].argmax(-1) == wanted) & (wanted != IGNORE)).sum())
                answered, tokens = answered + int((wanted != IGNORE).sum()), tokens + int(mask.sum())
    finally:
        for handle in handles:
            handle.remove()
    return right / answered, {name: total / tokens for name, total in sums.items()}
