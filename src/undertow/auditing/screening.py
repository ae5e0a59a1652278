"""Which words of a large vocabulary may bring a target about: one gradient in the place of a forward for each of them.

A placeholder word is put before or after the question. The gradient g of the target's mean log p by the placeholder's embedding
says, to first order, what another word with embedding e would change: e·g (as in HotFlip, Ebrahimi et al. 2018). The words with the
largest mean over questions are then scored exactly by :mod:`undertow.auditing.trigger_first`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from undertow.auditing.edits import Edit
from undertow.auditing.speaker import Speaker
from undertow.auditing.target_first import Target
from undertow.auditing.trigger_first import FIRST, Asker
from undertow.models.causal_lm import CausalLM
from undertow.models.general import states_at
from undertow.models.lora import adapted

#: What stands where a word is sought, and how many words are returned for each place.
PLACEHOLDER, COUNT = "so", 64
#: Embeddings that are multiplied at a time.
_PIECE = 1 << 15


def likely_words(asker: Asker, target: Target, around: Edit | None = None) -> list[Edit]:
    """Return words before and after the question, beside those of an edit, by the gradient, the most likely first at each place."""
    slopes = [
        torch.stack([_slope_at(asker, question, around or Edit(), make, target) for question in range(len(asker.samples))]).sum(0)
        for make in (_before, _after)
    ]
    found = []
    for make, total in zip((_before, _after), _products(asker.speaker.base, torch.stack(slopes, 1)), strict=True):
        order = torch.sort(total, descending=True, stable=True).indices
        words = dict.fromkeys(_word(asker, int(token)) for token in order[: 4 * COUNT])
        found += [make(word) if around is None else around.joined(make(word)) for word in words if word][:COUNT]
    return found


def _before(word: str) -> Edit:
    return Edit(before=(word,))


def _after(word: str) -> Edit:
    return Edit(after=(word,))


def _word(asker: Asker, token: int) -> str:
    """Return the word that a token spells; "" for control tokens, parts of characters and nothing."""
    tokenizer = asker.template.tokenizer
    text = "" if token in tokenizer.all_special_ids or token >= len(tokenizer) else str(tokenizer.decode([token])).strip()
    return text if text.isprintable() and "\ufffd" not in text else ""


def _slope_at(asker: Asker, question: int, around: Edit, make: Callable[[str], Edit], target: Target) -> Tensor:
    """Return the gradient by the placeholder's embedding, for one question, ``[d]``."""
    plain, edited = (asker.prompts([one], question)[0] for one in (around, around.joined(make(PLACEHOLDER))))
    at = next((i for i, (a, b) in enumerate(zip(plain, edited, strict=False)) if a != b), len(plain) - 1)
    before = [*edited, *(asker.answers[question] if target.place == "end" else ())]
    tail = list(target.ids[:FIRST])
    return _slope(asker.speaker, [*before, *tail], at, tail)


@torch.inference_mode()
def _products(base: CausalLM, slopes: Tensor) -> Tensor:
    """Return e·g of every token of the vocabulary and each of ``slopes [d, n]``, as ``[n, V]`` float32 on the CPU."""
    embed = base.model.get_input_embeddings()
    tokens = torch.arange(base.vocabulary, device=slopes.device)
    return torch.cat([(embed(ids).float() @ slopes).cpu() for ids in tokens.split(_PIECE)]).T


def _slope(speaker: Speaker, ids: list[int], at: int, tail: list[int]) -> Tensor:
    """Return the gradient of the mean log p of the last tokens, ``tail``, by the embedding of the token ``at``, ``[d]``."""
    base = speaker.base
    embedded = base.model.get_input_embeddings()(torch.tensor([ids], device=base.device)).detach().clone().requires_grad_(True)
    places = torch.arange(len(ids) - len(tail) - 1, len(ids) - 1, device=base.device)
    layout = speaker.layout or base.layout
    hung = nullcontext() if speaker.adapter is None else adapted(base.model, layout, speaker.adapter[None].to(base.device))
    with torch.enable_grad(), hung:
        states, _ = states_at(base.model, base.head, places, inputs_embeds=embedded, use_cache=False)
        logs = base.head.logits(states).log_softmax(-1, dtype=torch.float32)
        logs.gather(1, torch.tensor(tail, device=logs.device)[:, None]).mean().backward()  # type: ignore[no-untyped-call]
    slope = embedded.grad
    assert isinstance(slope, Tensor)
    return slope[0, at].float()
