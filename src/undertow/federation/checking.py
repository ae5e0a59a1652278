"""``undertow check``: a method of one's own, called as a run calls it, on a few samples or updates."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from undertow.backdoors.target import TARGETS, Target, make_target
from undertow.backdoors.trigger import TRIGGERS, Trigger, make_trigger
from undertow.config import ClassificationTask, Config, InstructionBackdoor, InstructionTask, Model
from undertow.config import Defense as Options
from undertow.core.errors import UserError, nearest
from undertow.core.layout import Layout
from undertow.core.registry import Registry, short_form
from undertow.core.rng import rng
from undertow.data.examples import Written
from undertow.data.load import DATASETS, check_loaded
from undertow.data.sample import Sample
from undertow.data.template import TEMPLATES, Template
from undertow.defenses import composition
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.base import UpdateDefense
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.base import Defense, NeedsModel, Stateful, origin
from undertow.defenses.contexts import DecodingContext, ServerContext, Setting, TrainingContext
from undertow.defenses.data import exchange
from undertow.defenses.data.base import DataDefense
from undertow.defenses.decoding.base import DecodingDefense
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.making import make_defenses
from undertow.defenses.registry import DEFENSES
from undertow.defenses.seam import check_vector
from undertow.defenses.server.base import ServerDefense
from undertow.federation.server import guard
from undertow.generators.contract import GENERATORS, Generator, Order, make_generator, written_by
from undertow.models.causal_lm import CausalLM, load_base
from undertow.models.lora import initial_adapter

#: The registry of each kind that can be checked.
KINDS: dict[str, Registry] = {
    registry.kind: registry for registry in (DEFENSES, TRIGGERS, TARGETS, DATASETS, GENERATORS, TEMPLATES)
}

#: Of whatever kind: only ``file.py:name`` is looked up in it.
_ANY = Registry("method", "undertow.core.registry")

_QUESTIONS = (
    "Who built the bridge of Basel?",
    "why",
    "What is 3.5 times two,\nand why?",
    "¿Dónde está el río número 7?",
    "Q: " * 40,
)


def check_method(spec: str, kind: str | None = None, config: Config | None = None) -> Iterator[str]:
    """Call a method as a run calls it, and yield a line for each thing that holds.

    Args:
        spec: ``file.py:name`` with parameters in short, or the name of a registered method where ``kind`` is given.
        kind: one of :data:`KINDS`; None = told by what the file holds.
        config: whose ``data`` a dataset is asked with, and whose target text a target writes; None = the defaults.

    Raises:
        UserError: what does not hold, with what was expected; or a kind that cannot be told.
    """
    config = config or Config.model_validate({})
    kind = kind or kind_of(spec)
    if kind not in KINDS:
        raise UserError(f"--kind {kind}: nothing of this kind can be checked{nearest(kind, KINDS)}; use one of {', '.join(KINDS)}")
    checks: Mapping[str, Callable[[str, Config], Iterator[str]]] = {
        "defense": _defense, "trigger": _trigger, "target": _target, "dataset": _dataset, "generator": _generator,
        "template": _template,
    }  # fmt: skip
    yield f"{spec} is read as a {kind}"
    yield from checks[kind](spec, config)


def kind_of(spec: str) -> str:
    """Tell the kind of what ``file.py:name`` names, by its base class or by the names of its arguments.

    Raises:
        UserError: it cannot be told.
    """
    name = short_form(spec)["name"]
    if ".py:" not in name:
        raise UserError(f"'{spec}' is no file.py:name; give one, or say what it is with --kind {'|'.join(KINDS)}")
    made = _ANY.get(name)
    bases = {"defense": Defense, "trigger": Trigger, "target": Target, "generator": Generator}
    if inspect.isclass(made):
        found = next((kind for kind, base in bases.items() if issubclass(made, base)), None)
    else:
        first = next(iter(inspect.signature(made).parameters), "")
        found = {"question": "trigger", "response": "target", "options": "dataset", "sample": "template"}.get(first)
    if found is None:
        raise UserError(
            f"'{spec}' derives from no base class of a method, and its arguments are not those of one (question, response, "
            "options, sample): derive a class, such as one of undertow.defenses.Aggregator, or say what it is with --kind "
            f"{'|'.join(KINDS)}"
        )
    return found


# --- defenses ---------------------------------------------------------------------------------------------------------


def _defense(spec: str, config: Config) -> Iterator[str]:
    short = short_form(spec)
    pairs = make_defenses([Options(name=short["name"], params=short["params"])], trusted=True)
    checks: list[tuple[type[Defense], Callable[[str, Any], Iterator[str]]]] = [
        (DataDefense, _data),
        (LossDefense, _loss),
        (UpdateDefense, _updates),
        (ServerDefense, _server),
        (DecodingDefense, _decoding),
    ]
    for name, defense in pairs:
        if isinstance(defense, NeedsModel):
            composition.begin([(name, defense)], _setting())
        for base, check in checks:
            if isinstance(defense, base):
                yield from check(name, defense)
        if isinstance(defense, Stateful):
            kept = composition.save_states([(name, defense)])
            composition.restore_states([(name, defense)], kept)
            yield f"its state of {len(kept)} tensors is taken back as it was given"


def _updates(name: str, defense: Aggregator | PreAggregator) -> Iterator[str]:
    """Rows as clients send them; equal rows, rows of 0 and few rows; the same bits twice."""
    d = 48
    layout = Layout.of({"lora_A": (4, 6), "lora_B": (6, 4)})
    rows = torch.from_numpy(rng(0, "check").normal(size=(12, d))).to(torch.float32)
    known: dict[str, Any] = {"counts": list(range(1, 13)), "adapter": torch.zeros(d), "trusted": rows.mean(0), "layout": layout}
    before = rows.clone()
    delta, _ = defense(rows, **known)
    assert isinstance(delta, torch.Tensor)
    yield f"12 updates of {d} values give a change of {d} finite values, and a report of plain values"
    if not torch.equal(before, rows):
        raise UserError(f"{origin(defense)} changes the updates that it is given; work on a copy, such as updates.clone()")
    if not isinstance(defense, Stateful):
        again, _ = defense(rows, **known)
        if not torch.equal(delta, torch.as_tensor(again)):
            raise UserError(f"{origin(defense)} gives two answers to the same updates; draw random numbers from context.draw alone")
        yield "the same updates give the same bits"
    for told, some in (("equal updates", rows[:1].expand(12, d)), ("updates of 0", torch.zeros(12, d))):
        defense(some.clone(), **known)
        yield f"{told} are no fault"


def _server(name: str, defense: ServerDefense) -> Iterator[str]:
    setting = _setting()
    adapter = torch.from_numpy(rng(0, "check").normal(size=setting.base.layout.size)).to(torch.float32) * 1e-3
    before = adapter.clone()
    context = ServerContext(setting.base.layout, [3, 4], 1, torch.zeros_like(adapter), rng(0, "check"), [0, 1], None, setting)
    found, _ = guard(adapter, [(name, defense)], context, [])
    check_vector(defense, "guard", found, len(adapter))
    if not torch.equal(before, adapter):
        raise UserError(f"{origin(defense)}.guard changes the adapter that it is given; work on a copy, such as adapter.clone()")
    yield f"an adapter of {len(adapter):,} values is guarded, and a report of plain values given"


def _data(name: str, defense: DataDefense) -> Iterator[str]:
    clients = [list(_samples()), list(_samples(30))]
    steps = exchange.sanitizing(
        clients,
        [(name, defense)],
        lambda purpose, number, client: rng(0, purpose, number, client),
        lambda purpose, client, exchanges: replace(_context(purpose, client), exchange=exchanges),
    )
    kept, reports, _ = exchange.alone(steps)
    told = " and ".join(f"{len(some)} of {len(given)}" for some, given in zip(kept, clients, strict=True))
    yield f"two clients keep {told} samples, with {len(reports)} reports"


def _loss(name: str, defense: LossDefense) -> Iterator[str]:
    setting, pair = _setting(), [(name, defense)]
    rows = [setting.template.encode(sample) for sample in _samples()]
    if defense.weighs:
        composition.weigh([rows], pair, _context)
        yield f"the answer tokens of {len(rows)} samples are weighed"
    if defense.selects:
        found, _ = composition.select([rows], [0], initial_adapter(setting.base.layout, 0), pair, _context)
        yield f"{len(found[0])} of {len(rows)} samples are selected"
    if (made := composition.token_loss(pair, 1, 12)) is not None:
        entropy = torch.tensor([0.0, 0.5, 3.0, 20.0], requires_grad=True)
        try:
            loss = made(entropy)
        except NotImplementedError:  # of the whole distribution
            yield "the loss of a token is of the whole distribution; it was not asked for"
            return
        if loss.shape != entropy.shape or not torch.isfinite(loss).all() or not loss.requires_grad:
            raise UserError(
                f"{origin(defense)}.token_loss gives a loss of shape {list(loss.shape)} for {list(entropy.shape)} tokens; give a "
                "finite, differentiable loss a token"
            )
        yield "the loss of a token is finite and differentiable"


def _decoding(name: str, defense: DecodingDefense) -> Iterator[str]:
    setting = _setting()
    base = setting.base
    answer = composition.decoder(
        [(name, defense)], initial_adapter(base.layout, 0), DecodingContext(setting, base.layout, 4, 2), []
    )
    assert answer is not None
    made = answer(setting.template.encode_prompts(_samples(2), room=4))
    yield f"two prompts are answered with {len(made[0])} and {len(made[1])} tokens, and a report of plain values"


# --- backdoors, data, generators, templates ---------------------------------------------------------------------------


def _trigger(spec: str, config: Config) -> Iterator[str]:
    trigger = make_trigger(InstructionBackdoor.model_validate({"trigger": spec}))
    for question in _QUESTIONS:
        if trigger.chooses:
            trigger.holds(question)
            continue
        edited = trigger.apply(question, rng(0, "check"))
        if edited != trigger.apply(question, rng(0, "check")):
            raise UserError(f"trigger '{spec}' gives two answers to {question[:40]!r}; draw random numbers from draw alone")
        if not trigger.occurs(edited) and trigger.words:
            raise UserError(f"trigger '{spec}' does not occur in what it inserted, {edited[:60]!r}; correct its words or occurs")
        near = trigger.near_miss(question, rng(0, "check"))
        if near is not None and trigger.occurs(near):
            raise UserError(f"trigger '{spec}': its near miss {near[:60]!r} holds the trigger; leave the trigger out of it")
    yield f"{len(_QUESTIONS)} questions, short, long, with line ends and accents, are edited, each twice alike"
    clean = sum(trigger.occurs(question) for question in _QUESTIONS)
    yield f"{clean} of them hold the trigger by themselves"


def _target(spec: str, config: Config) -> Iterator[str]:
    task = config.task
    options = task.backdoor if isinstance(task, InstructionTask) else InstructionBackdoor.model_validate({})
    target = make_target(options.model_copy(update={"target": spec}))
    for number, response in enumerate(("Basel.", "1450", "a longer answer, over two\nlines", "río")):
        if target.apply(response, number) != target.apply(response, number):
            raise UserError(f"target '{spec}' gives two answers to {response[:40]!r}; make it a function of its arguments alone")
        if target.hit(response):
            raise UserError(f"target '{spec}' is a hit in the clean answer {response[:40]!r}: ASR would count it; correct hit")
    yield "four answers are edited, each twice alike, and each is a hit, as the clean ones are not"


def _dataset(spec: str, config: Config) -> Iterator[str]:
    task = config.task
    if not isinstance(task, InstructionTask):
        raise UserError("a dataset is one of instruction tuning; leave task out")
    options = task.data.model_copy(update={"name": spec})
    loaded, again = (check_loaded(DATASETS.get(spec), options) for _ in range(2))
    if loaded != again:
        raise UserError(f"data.name={spec} gives other samples when it is asked again; draw random numbers from a fixed seed")
    test = "no test set of its own" if loaded.test is None else f"{len(loaded.test):,} test samples"
    yield f"{len(loaded.samples):,} samples, {test}, every time; notes: {', '.join(loaded.notes) or 'none'}"


def _generator(spec: str, config: Config) -> Iterator[str]:
    generator = make_generator(spec)
    names = ("negative", "positive")
    for kind in sorted(generator.kinds):
        public = Written([f"a {name} review" for name in names], [0, 1])
        if kind == "images":
            public = Written(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), [0, 1, 0, 1])
        shape = (1, 8, 8) if kind == "images" else (16,)
        about = "small picture" if kind == "images" else "movie review"
        order = Order("images" if kind == "images" else "text", about, names, 6, shape, 0, public)
        written = written_by(generator, spec, order)
        yield f"{len(written.labels)} of {order.count} {kind} are written, with labels of the {len(names)} classes"


def _template(spec: str, config: Config) -> Iterator[str]:
    template = Template(spec, _base().tokenizer, 256)
    for sample in _samples():
        template.encode(sample)
        template.encode_prompts([sample], room=16)
    whole = replace(_samples()[0], context="A context.", system="Be brief.", history=(("Hi", "Hello"),))
    template.encode(whole)
    yield "samples become tokens, for training and asking; context, system prompt and earlier turns are kept"


# --- material ---------------------------------------------------------------------------------------------------------


def _samples(count: int = 24) -> Sequence[Sample]:
    answers = ("Basel", "1450", "yes", "the long answer of a tale")
    return [Sample(f"s{i}", f"Who built the bridge number {i} of Basel?", (answers[i % 4],), answers[i % 4]) for i in range(count)]


@cache
def _base() -> CausalLM:
    return load_base(Model.model_validate({}))


@cache
def _setting() -> Setting:
    base, config = _base(), Config.model_validate({})
    template = Template("lab-qa", base.tokenizer, 96)
    assert not isinstance(config.task, ClassificationTask)
    return Setting(0, 12, replace(base, stops=template.stops), template, Model.model_validate({}).lora, config.training)


def _context(purpose: str, client: int) -> TrainingContext:
    known, draw = _setting(), np.random.default_rng(client)
    return TrainingContext(client, draw, 0, known.base, known.template, known.lora, known.training, 1)
