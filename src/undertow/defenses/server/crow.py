"""CROW: the server tunes the global adapter so that hidden states change little from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.template import Encoded
from undertow.defenses.base import NeedsModel
from undertow.defenses.contexts import NetSetting, ServerContext, Setting
from undertow.defenses.parameters import number, one_of, whole
from undertow.defenses.registry import DEFENSES
from undertow.defenses.server.base import ServerDefense
from undertow.defenses.server.network_consistency import consistency_losses
from undertow.defenses.server.server_tuning import synthetic_data
from undertow.defenses.trusted import path_of, required, trusted_rows

if TYPE_CHECKING:
    from undertow.models.causal_lm import CausalLM


def consistency(hidden: Sequence[Tensor], real: Tensor) -> Tensor:
    """Return the mean of 1 - cos(h_l, h_(l+1)) over the layers l = 1 .. L - 2, of two layers l = 1, and the tokens that are no
    padding.

    Args:
        hidden: L + 1 states ``[N, T, d]``, the embeddings first, as transformers gives them; L >= 2.
        real: ``[N, T]``, 0 at padding.
    """
    inner = hidden[1:] if len(hidden) == 3 else hidden[1:-1]
    here, above = torch.stack(tuple(inner[:-1])), torch.stack(tuple(inner[1:]))
    away = 1 - nn.functional.cosine_similarity(here, above, dim=-1, eps=1e-8)  # [L - 2, N, T]
    return (away * real).sum() / (real.sum() * len(here))


@DEFENSES.register("crow", source="Min, Pham, Li, Sun 2025, CROW: Internal Consistency Regularization, ICML; the authors' code")
class Crow(NeedsModel, ServerDefense):
    """The server tunes the global adapter on trusted samples, with a penalty on jumps between layers under perturbed inputs.

    Per step, with e the embeddings of the samples and h_l(e) the hidden states of layer l:

        C(e) = mean over l = 1 .. L - 2 and tokens of 1 - cos(h_l, h_(l+1))
        e'   = e + ε·sign(∇_e C(e))                      (FGSM)
        loss = LM loss + α·C(e')                          (e' held fixed)

    minimised by AdamW with a cosine rate after 10 % warm-up and gradients clipped to norm 1. As the authors' code: α, ε, the
    layers, rate, passes, 2 samples x 4 accumulated a step, 100 samples. Ours: what is tuned is the global adapter itself, so the
    run's LoRA modules; C leaves padding out; the LM loss is over answer tokens. ε is absolute in the embedding space, where
    bases differ: ``relative`` makes it a multiple of the embeddings' root mean square.

    On texts with classes the network itself is tuned on the run's synthetic data: h_l are the outputs of its blocks, h_0 those of
    its first embedding, and the cross-entropy of the classes stands for the LM loss. A network of two blocks has the one pair (h_1,
    h_2).

    Args:
        trusted: in instruction tuning, which needs it, an instruction file without poison, in any form that
            `data.name=instructions` reads.
        samples: use the first so many of it, >= 2.
        alpha: α >= 0.
        epsilon: ε >= 0.
        relative: whether ε is in units of the embeddings' root mean square.
        lr: the highest learning rate.
        passes: over the samples, >= 1.
        batch_size, accumulate: samples of a forward, and forwards of a step, >= 1.
        when: last = on the adapter of the last round; every = on that of every round.
    """

    over_tensors = True

    def __init__(
        self,
        trusted: str = "",
        samples: int = 100,
        alpha: float = 5.5,
        epsilon: float = 0.1,
        relative: bool = False,
        lr: float = 1e-3,
        passes: int = 5,
        batch_size: int = 2,
        accumulate: int = 4,
        when: str = "last",
    ) -> None:
        self.trusted = path_of("crow", trusted)
        self.samples = whole("samples", samples, 2)
        self.alpha, self.epsilon = number("alpha", alpha, least=0), number("epsilon", epsilon, least=0)
        self.relative = relative
        self.lr = number("lr", lr)
        self.passes = whole("passes", passes, 1)
        self.batch_size, self.accumulate = whole("batch_size", batch_size, 1), whole("accumulate", accumulate, 1)
        self.when = one_of("when", when, ("last", "every"))
        self._rows: list[Encoded] = []

    def begin(self, setting: Setting) -> None:
        """Read the trusted samples.

        Raises:
            UserError: there are none or they cannot be read, or the base has fewer than 3 layers.
        """
        path = required("crow", self.trusted)
        layers = getattr(setting.base.model.config, "num_hidden_layers", 0)
        if layers < 3:
            raise UserError(f"the base has {layers} layers and CROW compares layers 1 to L - 1; use a base of at least 3")
        self._rows = trusted_rows(path, setting.template, self.samples)

    def guard(self, adapter: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the tuned adapter; the report has the mean ``lm`` loss and ``consistency`` C(e') of the first and last pass.

        Raises:
            UserError: outside a run, or the tuning diverged.
        """
        if context.network is not None:
            rounds = context.network.rounds
        elif context.setting is not None:
            rounds = context.setting.rounds
        else:
            raise UserError("crow needs the model, which only a run has; use it in a run's defenses")
        if self.when == "last" and context.round < rounds:
            return adapter, {"tuned": False}
        if context.network is not None:
            tuned, passes = self._tune_network(context.network, adapter, context.round)
        else:
            assert context.setting is not None
            tuned, passes = self._tune_base(context.setting.base, adapter, context.setting.seed, context.round)
        if not torch.isfinite(tuned).all():
            raise UserError(f"crow: the tuning with lr = {self.lr:g} and alpha = {self.alpha:g} diverged; lower lr")
        return tuned, {"tuned": True, "first": passes[0], "last": passes[-1]}

    def _tune_base(self, base: CausalLM, adapter: Tensor, seed: int, round: int) -> tuple[Tensor, list[dict[str, float]]]:
        local = nn.Parameter(adapter[None].to(base.device).clone())
        epsilon = self.epsilon
        if self.relative:
            epsilon *= float(base.model.get_input_embeddings().weight.float().square().mean().sqrt())

        def losses(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            return self._losses(base, local, [self._rows[i] for i in places], epsilon)

        told = self._steps(local, losses, len(self._rows), seed, round)
        return local.detach()[0].to(adapter.device), told

    def _tune_network(self, network: NetSetting, state: Tensor, round: int) -> tuple[Tensor, list[dict[str, float]]]:
        data, trained = synthetic_data("crow", network), network.net.trained
        whole = state.to(next(network.net.module.parameters()).device)
        local = nn.Parameter(whole[:trained].clone())

        def losses(places: Sequence[int]) -> tuple[Tensor, Tensor]:
            now = torch.cat([local, whole[trained:]])
            return consistency_losses(network, now, places, self.epsilon, self.relative, consistency)

        told = self._steps(local, losses, len(data), network.seed, round)
        return torch.cat([local.detach(), whole[trained:]]).to(state.device), told

    def _steps(
        self, local: nn.Parameter, losses: Callable[[Sequence[int]], tuple[Tensor, Tensor]], count: int, seed: int, round: int
    ) -> list[dict[str, float]]:
        """Minimise the loss over ``count`` samples; return the mean terms of each pass."""
        from transformers import get_cosine_schedule_with_warmup

        size = self.batch_size * self.accumulate
        total = self.passes * -(-count // size)
        optimizer = torch.optim.AdamW([local], lr=self.lr, weight_decay=0.0)
        schedule = get_cosine_schedule_with_warmup(optimizer, -(-total // 10), total)
        told = []
        for turn in range(self.passes):
            order = rng(seed, f"crow pass {turn}", round).permutation(count).tolist()
            seen: list[tuple[float, float]] = []
            for start in range(0, count, size):
                step = order[start : start + size]
                parts = [step[i : i + self.batch_size] for i in range(0, len(step), self.batch_size)]
                for part in parts:
                    loss, penalty = losses(part)
                    ((loss + self.alpha * penalty) / len(parts)).backward()
                    seen.append((loss.item(), penalty.item()))
                nn.utils.clip_grad_norm_([local], 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            told.append({"lm": sum(a for a, _ in seen) / len(seen), "consistency": sum(b for _, b in seen) / len(seen)})
        return told

    def _losses(self, base: CausalLM, local: Tensor, rows: list[Encoded], epsilon: float) -> tuple[Tensor, Tensor]:
        """Return the LM loss and C(e') of some samples."""
        from undertow.models.lora import adapted
        from undertow.models.padding import pad
        from undertow.training.batched import losses

        ids, mask = (tensor.to(base.device) for tensor in pad(rows, base.pad_id)[:2])
        clean = base.model.get_input_embeddings()(ids).detach().requires_grad_()

        def inconsistency(embeddings: Tensor) -> Tensor:
            with adapted(base.model, base.layout, local):
                hidden = base.model(
                    inputs_embeds=embeddings,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                    output_hidden_states=True,
                    use_cache=False,
                ).hidden_states
            return consistency(hidden, mask)

        (slope,) = torch.autograd.grad(inconsistency(clean), clean)
        perturbed = (clean + epsilon * slope.sign()).detach()
        return losses(base, local, [rows])[0], inconsistency(perturbed)
