"""Activation bounds: the server looks for the tightest limits on hidden activations under which the model answers as it did."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.examples import IGNORE, Examples
from undertow.data.template import Encoded
from undertow.defenses.base import Stateful
from undertow.defenses.contexts import DecodingContext, NetSetting, ServerContext, Setting
from undertow.defenses.decoding.base import DecodingDefense
from undertow.defenses.parameters import one_of, whole
from undertow.defenses.registry import DEFENSES
from undertow.defenses.server.base import ServerDefense
from undertow.defenses.server.bound_options import ProbeOptions, SearchOptions, grouped
from undertow.defenses.server.clipping import Search, Subject, search
from undertow.defenses.server.margins import Noise, Probes, Soft, Universal
from undertow.defenses.server.server_tuning import synthetic_data, tune_network
from undertow.defenses.server.sifting import sift, sift_texts
from undertow.defenses.trusted import trusted_rows
from undertow.models.bounds import Bounds, bounded, clipped_share, load_bounds, places
from undertow.models.net import Net

if TYPE_CHECKING:
    from undertow.models.causal_lm import CausalLM

#: What parameters are where nothing is said: on images, then on texts with ``universal``.
_HERE = {"places": "all", "sides": "upper", "pi": 0.99, "count": 20, "tight": 5.0}
_TEXTS = {"places": "linear", "sides": "both", "pi": 0.95, "count": 50, "tight": 1.0}

#: c at the start of each objective: of MM-BM's and MMAC's published code; of the last one ours.
_C = {"mm-bm": 0.5, "mmac": 0.002, "universal": 1.0}


@DEFENSES.register(
    "activation-bounds",
    source=(
        "Bi and Li 2024, arXiv 2410.17573 (abstract); objectives: published code of MM-BM and MMAC (arXiv 2308.04617); "
        "universal: ours"
    ),
)
class ActivationBounds(Stateful, ServerDefense, DecodingDefense):
    """After fusion the server bounds the global model's activations, optimising the bounds alone on synthetic data.

    With f the pre-softmax outputs, D the synthetic data, z_l the bounds of the channels of place l and f(x; Z) the model that
    computes min(h_l, z_l) in the place of every bounded activation h_l, the weights being fixed:

        J(Z) = mean over x in D and classes k of (f_k(x; Z) - f_k(x))^2 + c * P(Z)
        mm-bm       P = sum over l of |z_l|_2
        mmac        P = sum over x' of f_t(x'; Z) - max over k != t of f_k(x'; Z), x' noise pushed towards each class t (``Noise``)
        universal   P = the mean of the same, where it is above -1, for data of D that one small change moves to t though it does
                    not move a reference model there, which the server trains on D alone; most for the class that is reached most
                    easily (``Universal``); + tight * the mean of |z_l| in units of the largest activations on D

    Adam minimises J over Z. Every ``every`` steps after ``warmup`` steps, c <- factor * c where the rate on D is at least ``pi``,
    else c / factor. The rate is the share of D on which the bounded model says what the model says without bounds; with ``judge`` =
    labels over those of D whose label the model gives without bounds, as MM-BM chooses D. The Z that is kept is that of the
    smallest P among all that were judged with a rate of at least ``pi``: the start, every ``every``-th step, the last. At the start
    Z is the largest activation of each channel on D (times ``start``), which changes nothing on D, so that there is one; with
    ``start`` below 1 or other labels there may be none, and then the highest rate counts. The next round begins with this Z and c.
    The adapter itself is handed on bit by bit.

    Of Bi and Li's paper only the abstract could be read: bounds on activations of the model after fusion, optimised on the
    synthetic data alongside training. J, the rule for c and the defaults of ``pi`` (0.95), ``factor`` (1.2) and c are those of the
    code of the line of work it stands in. Ours: the whole of ``universal``, the start at the largest activations and a rate of Adam
    relative to them, the choice of Z, the judge ``model``, lower bounds, and that of texts the output of the first embedding is
    pushed. docs/activation-bounds.md.

    Args:
        objective: mm-bm, mmac or universal; None = universal, in instruction tuning mm-bm, which is the one that needs no classes.
        data: in instruction tuning D, a file in any form that `data.name=instructions` reads; elsewhere D is the run's synthetic
            data.
        samples: use the first so many of ``data``, >= 2.
        places: all = every activation module; n = the first n; linear = all, and every linear layer but the last; or a list of
            module names. None = all; universal on texts: linear.
        sides: upper; both = from below too. None = upper; universal on texts: both.
        when: last = after the last round alone, as nothing in training depends on Z; every = after each, so that each is measured
            under its own.
        warm: begin with the Z and c of the round before.
        bounds: a file of bounds that a run has left, used as they are; nothing is optimised then.
        search: options of :class:`~undertow.defenses.server.bound_options.SearchOptions`: judge, pi, c, factor, every, warmup,
            steps, batch_size, lr, start.
        probes: options of :class:`~undertow.defenses.server.bound_options.ProbeOptions`: count, push, changed, reference, sift,
            tight, renew.
        options: the same one by one, such as ``search.steps`` (``activation-bounds:search.steps=20``). Their names of before the
            groups are accepted with a warning.
    """

    over_tensors = True

    def __init__(
        self,
        objective: str | None = None,
        data: str | None = None,
        samples: int = 100,
        places: Any = None,
        sides: str | None = None,
        when: str = "last",
        warm: bool = True,
        bounds: str | None = None,
        search: Mapping[str, Any] | SearchOptions | None = None,
        probes: Mapping[str, Any] | ProbeOptions | int | None = None,
        **options: Any,
    ) -> None:
        self.search, self.probes = grouped(search, probes, options)
        self.objective = None if objective is None else one_of("objective", objective, tuple(_C))
        self.data = data
        self.samples = whole("samples", samples, 2)
        given = {
            "places": places,
            "sides": sides and one_of("sides", sides, ("upper", "both")),
            "pi": self.search.pi,
            "count": self.probes.count,
            "tight": self.probes.tight,
        }
        self.given = {name: value for name, value in given.items() if value is not None}
        self.when = one_of("when", when, ("every", "last"))
        if not isinstance(warm, bool):
            raise ValueError(f"warm = {warm!r} must be true or false")
        self.warm, self.file = warm, bounds
        self._rows: list[Encoded] = []
        self._held: Bounds | None = None
        self._c: float | None = None
        self._taught: tuple[Tensor, Tensor] | None = None

    def begin(self, setting: Setting) -> None:
        """Read the data, or the bounds, of instruction tuning, and look for the places.

        Raises:
            UserError: they cannot be read, the objective needs classes, or the base has no activation.
        """
        places(setting.base.model, self._here("mm-bm")["places"])
        if self.file is not None:
            self._held = load_bounds(Path(self.file).expanduser(), setting.base.model)
            return
        if self.objective in ("mmac", "universal"):
            raise UserError(f"objective = {self.objective} is for classes, and a language model has none; set objective=mm-bm")
        if not isinstance(self.data, str) or not self.data:
            raise UserError("activation-bounds needs data in instruction tuning, an instruction file to optimise on; set data=FILE")
        self._rows = trusted_rows(self.data, setting.template, self.samples)

    def guard(self, adapter: Tensor, context: ServerContext) -> tuple[Tensor, dict[str, Any]]:
        """Return the adapter ``[D]`` itself, and what the search found: the bounds are what changes.

        The report has ``samples``, ``steps``, the path of ``c``, ``rate`` and ``accuracy`` on the data of the bounds kept and the
        ``unclipped_accuracy``, the terms of J at the ``first`` and ``last`` step, ``kept_step``, and the ``clipped`` share of
        activations.

        Raises:
            UserError: outside a run, no data, no activations, or values that are not finite.
        """
        network, setting = context.network, context.setting
        if network is None and setting is None:
            raise UserError("activation-bounds needs a run's model and data; use it in a run's defenses")
        if network is not None:
            if self.file is not None:
                self._held = load_bounds(Path(self.file).expanduser(), network.net.module)
            elif network.synthetic is None or not len(network.synthetic):
                raise UserError(
                    "activation-bounds needs synthetic data; set synthetic.generator to one of `undertow list generators`"
                )
        rounds = network.rounds if network is not None else setting.rounds if setting is not None else 0
        if self.file is not None or (self.when == "last" and context.round < rounds):
            return adapter, {"optimised": False}
        report = (
            self._bound_network(adapter, network, context.round)
            if network is not None
            else self._bound_base(adapter, setting, context)  # type: ignore[arg-type]
        )
        return adapter, {"optimised": True, **report}

    def bounds(self) -> Bounds | None:
        """Return the bounds kept last; None before any."""
        return self._held

    def decode(
        self, prompts: Sequence[Sequence[int]], adapter: Tensor, context: DecodingContext
    ) -> tuple[list[list[int]], dict[str, Any]]:
        """Return the bounded model's greedy answers; before there are bounds, those of the model without."""
        from undertow.inference.decoding import generate

        base = context.setting.base
        with self._set(base.model):
            made = generate(
                base,
                adapter,
                [list(prompt) for prompt in prompts],
                max_new_tokens=context.max_new_tokens,
                batch_size=context.batch_size,
                layout=context.layout,
                modules=True,  # bounds hang on the modules themselves
            )
        return made, {"bounded": self._held is not None}

    def state(self) -> dict[str, Tensor]:
        """Return Z and c."""
        if self._held is None or self._c is None:
            return {}
        return {**self._held.named(), "c": torch.tensor([self._c], dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take Z and c back.

        Raises:
            UserError: the state is not this defense's.
        """
        if not state:
            return
        try:
            held = Bounds.of({key: z for key, z in state.items() if key != "c"})
            c = float(state["c"].item())
            if not (held.upper and math.isfinite(c) and c > 0):
                raise ValueError(f"c = {c:g}")
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the checkpoint holds no activation bounds ({' '.join(str(error).split())}); delete the run directory and run "
                "again"
            ) from error
        self._held, self._c = held, c

    def _set(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext() if self._held is None else bounded(module, self._held)

    def _bound_network(self, state: Tensor, network: NetSetting, round: int) -> dict[str, Any]:
        """Search on a network and its synthetic data."""
        net, data = network.net, synthetic_data("activation-bounds", network)
        tensors = {name: t.detach() for name, t in net.of_state(state.to(next(net.module.parameters()).device)).items()}
        device = next(iter(tensors.values())).device
        objective = self.objective or "universal"
        classes = len(network.classes)
        here = self._here(objective, data.inputs)
        if objective != "mm-bm" and (data.labels.dim() > 1 or classes < 2):
            raise UserError(f"objective = {objective} needs one of several classes for each input; set objective=mm-bm")
        sifted: dict[str, Any] = {}
        if objective == "universal" and self.probes.sift:
            raw = data.inputs.to(device)
            soft = Soft.of(net, tensors, raw)
            if raw.is_floating_point():
                draw = rng(network.seed, "sifting for activation bounds", round)
                rows, sifted = sift(soft, raw, classes, here["count"], self.probes.push, self.probes.changed, draw)
            else:
                rows, sifted = sift_texts(soft, raw)
            data = data.take(rows)
        inputs = data.inputs.to(device)
        labels = data.labels.reshape(len(data), -1)
        used = [i for i in range(len(data)) if bool((labels[i] != IGNORE).any())]
        counted = labels != IGNORE

        def logits(rows: Sequence[int]) -> Tensor:
            chosen = [used[row] for row in rows]
            found = net.call(tensors, inputs[chosen])
            return found.reshape(len(chosen), -1, found.shape[-1])[counted[chosen].to(found.device)]

        probes: Probes | None = None
        if objective == "mmac":
            probes = Noise(Soft.of(net, tensors, inputs), inputs, classes, here["count"], self.probes.push)
        elif objective == "universal":
            reference = self._reference(network, data, inputs) if self.probes.reference else None
            soft = Soft.of(net, tensors, inputs)
            probes = Universal(soft, reference, inputs, classes, here["count"], self.probes.push, self.probes.changed)
        subject = Subject(net.module, logits, [labels[i][counted[i]] for i in used], probes)
        return {**self._search(subject, objective, here, network.seed, round), **sifted}

    def _reference(self, network: NetSetting, data: Examples, inputs: Tensor) -> Soft:
        """Return a model trained on synthetic data alone, by the run's own options; anew where others of them were left out."""
        if self._taught is None or not torch.equal(self._taught[0], data.inputs):
            self._taught = (data.inputs, tune_network(network, network.net.initial(), data, self.probes.reference))
        own = Net(copy.deepcopy(network.net.module))  # bounds are hooks on the module of the model that is bounded
        return Soft.of(own, own.of_state(self._taught[1].to(inputs.device)), inputs)

    def _bound_base(self, adapter: Tensor, setting: Setting, context: ServerContext) -> dict[str, Any]:
        """Search on the adapted base, at the answers of the data."""
        from undertow.models.lora import adapted

        base, rows = setting.base, self._rows
        with adapted(base.model, context.layout, adapter.detach()[None].to(base.device)):
            subject = Subject(base.model, _answers(base, rows), [torch.tensor(row.answer) for row in rows], rows=16)
            return self._search(subject, "mm-bm", self._here("mm-bm"), setting.seed, context.round)

    def _here(self, objective: str, inputs: Tensor | None = None) -> dict[str, Any]:
        """Return ``places``, ``sides``, ``pi``, ``count`` and ``tight``: what was said, else what suits the inputs."""
        texts = objective == "universal" and inputs is not None and not inputs.is_floating_point()
        return {**(_TEXTS if texts else _HERE), **self.given}

    def _search(self, subject: Subject, objective: str, here: Mapping[str, Any], seed: int, round: int) -> dict[str, Any]:
        names = places(subject.module, here["places"])
        warm = None
        if self.warm and self._held is not None and self._c is not None:
            held = self._held
            if set(held.upper) != set(names) or bool(held.lower) != (here["sides"] == "both"):
                raise UserError(
                    "activation-bounds: the checkpoint's bounds are for other places or sides; run again in another --out"
                )
            # In the order of the network, whatever that of the checkpoint: sums of lengths depend on it.
            ordered = [{name: own[name] for name in names if name in own} for own in (held.upper, held.lower)]
            warm = (Bounds(*ordered), self._c)
        tight = here["tight"] if objective == "universal" else 0.0
        c, sides, rate = self.search.c or _C[objective], here["sides"], here["pi"]
        options = Search(c, rate, sides, tight, self.probes.renew, self.search)
        found = search(subject, names, options, warm, rng(seed, "activation bounds", round))
        self._held, self._c = found.bounds, found.c
        every = list(range(len(subject.labels)))
        with torch.no_grad():
            share = clipped_share(
                lambda: [subject.logits(every[i : i + subject.rows]) for i in range(0, len(every), subject.rows)],
                subject.module,
                found.bounds,
            )
        return {"objective": objective, "places": names, **found.report, "clipped": share}


def _answers(base: CausalLM, data: Sequence[Encoded]) -> Callable[[Sequence[int]], Tensor]:
    """Return what gives the logits of some samples' answer tokens, ``[m, V]`` float32."""
    from undertow.models.padding import pad

    def logits(rows: Sequence[int]) -> Tensor:
        ids, mask, _, keep = pad([data[row] for row in rows], base.pad_id)
        ids, mask = ids.to(base.device), mask.to(base.device)
        kept = {"logits_to_keep": keep} if base.logits_to_keep else {}
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = base.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **kept).logits
        # All answers end in the last column; what says their first token is one column before it.
        return torch.cat([own[-len(data[row].answer) - 1 : -1] for row, own in zip(rows, found, strict=True)]).float()

    return logits
