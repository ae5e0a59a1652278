"""Where a study is run: on which data and bases, how fine, with how many seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from undertow.core.errors import UserError, nearest
from undertow_reproductions.study import FilterGrid, Grids

#: Real data a setting may need, found in the folder that ``--data`` names.
Source = Literal["simplequestions", "triviaqa"]


@dataclass(frozen=True)
class Build:
    """A base that is pre-trained before the first run.

    Attributes:
        name: its folder.
        facts: what it reads: the built-in world (None), or the facts of a real data set.
        recipe: values of :class:`undertow.pretraining.build.Recipe` other than the defaults.
        limit: facts, drawn at random; None for all.
        core_minutes: what it takes on one core of a laptop, measured on ours.
    """

    name: str
    facts: Source | None
    recipe: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    core_minutes: float = 0.0


@dataclass(frozen=True)
class Setting:
    """A pair of data and base.

    Attributes:
        dataset, model: as shown.
        paper_dataset, paper_model: which of the paper's these are; empty if none.
        source: shipped config.
        overrides: ``key=value`` over it.
        reads: real data, whose place goes into ``data.path``.
        build: the base, whose folder goes into ``model.name``.
        pretrained: it stands on the base of ``--base``, which others pre-trained.
    """

    dataset: str
    model: str
    source: str
    paper_dataset: str = ""
    paper_model: str = ""
    overrides: tuple[str, ...] = ()
    reads: Source | None = None
    build: Build | None = None
    pretrained: bool = False


@dataclass(frozen=True)
class Cost:
    """What a run takes with one thread on the base of ``PRETRAINED``, from measurements of ours.

    Attributes:
        start: seconds until the base is there, once a worker.
        untouched, train, measure: seconds for the untouched base, a round, and the measurement after the last one.
        samples, questions: of the run that was measured.
        gib: its memory at its highest.
        machine: on what.
    """

    start: float
    untouched: float
    train: float
    measure: float
    samples: int
    questions: int
    gib: float
    machine: str


@dataclass(frozen=True)
class Profile:
    """A way to run all studies.

    Attributes:
        name: what ``--profile`` takes.
        purpose: one line.
        settings: the first is the main one; Table 1 alone uses the others.
        real: settings that join with ``--data``; where ``settings`` is empty the first of these is the main one.
        grids, seeds: how fine.
        deviations: where it differs from the paper, and why.
        weights: parameters of the bases where nothing can be measured before; 0 to predict from a measured round.
        cost: of a run, as measured by us, where three rounds to measure would take minutes; None to measure.
        peak: floating-point operations a second of the device that ``weights`` is for.
        few: seeds of the items that take fewer than the others, where ``--seeds`` says nothing else.
        items: of a collection, where ``--only`` says nothing; those that are not named here run all.
        rules: of ``sanitization``, where ``--rules`` says nothing; empty for all.
    """

    name: str
    purpose: str
    settings: tuple[Setting, ...]
    real: tuple[Setting, ...]
    grids: Grids
    seeds: int
    deviations: tuple[str, ...] = ()
    weights: float = 0.0
    peak: float = 312e12
    cost: Cost | None = None
    few: Mapping[str, int] = field(default_factory=dict)
    items: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rules: tuple[str, ...] = ()


_DATASETS: tuple[tuple[str, Source], ...] = (("SimpleQuestions", "simplequestions"), ("TriviaQA", "triviaqa"))
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_WITH_NONE = (0.0, *_TENTHS)
_FINE = Grids(
    prs=(0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    rhos=_TENTHS,
    global_rhos=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    defended_rhos=(0.1, 0.3, 0.5, 0.7, 0.9),
    search_rhos=(0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    search_top=40,
    search_seeds=3,
    null_rhos=(0.2, 0.5, 0.8),
    matrix_rhos=_WITH_NONE,
    slow_rhos=(0.2, 0.5, 0.8),
    slow_lr=5e-4,
    slow_rounds=40,
)
_SMALL = {"hidden": 96, "layers": 3, "steps": 1800}
_REAL = {"vocab": 3072, "steps": 1800}


def _real(dataset: str, source: Source) -> Setting:
    """One real data set on the laptop, with a base built on its facts."""
    build = Build(source, source, _REAL, limit=2200, core_minutes=14)
    return Setting(dataset, "1.2 M base", "real-simplequestions", paper_dataset=dataset, reads=source, build=build)


_LAPTOP = Profile(
    name="laptop",
    purpose="bases of about a million parameters; one evening on 2 cores",
    settings=(
        Setting("built-in world", "built-in base, 1.0 M", "demo"),
        Setting("built-in world", "smaller base, 0.5 M", "demo", build=Build("world-small", None, _SMALL, core_minutes=6)),
    ),
    real=tuple(_real(dataset, source) for dataset, source in _DATASETS),
    grids=replace(_FINE, matrix_rhos=(0.0, 0.1, 0.3, 0.5, 0.7, 1.0)),
    seeds=3,
    deviations=(
        "Bases of about a million parameters, pre-trained on the facts that are asked for, stand where the paper has Vicuna-7B and "
        "Llama-2-7B: shapes can be compared, values cannot.",
        "The main setting asks about an invented world. Real SimpleQuestions and TriviaQA questions enter Table 1 with `--data`, "
        "on one base each; two sizes of base stand for the paper's two models on the invented world alone.",
        "20 rounds (40 on real questions) instead of 100, learning rate 2e-3 and LoRA on all linear layers: small bases need "
        "larger steps than the paper's 2e-5.",
        "150 samples a client (115 on real questions); the paper does not state its sizes.",
        "TriviaQA questions of at most 100 characters; the base has read each of them as a statement with its answer, since a base "
        "this small knows nothing else.",
    ),
)

#: Where `make pretrained` puts its base.
PRETRAINED = "bases/gemma-3-270m"
#: What its runs have in common, and the defenses that are tried on it.
_ANY_SIZE = ("data.only_known=false", "attack.trigger=natural", "measure.max_new_tokens=32")
_RULES = ("none", "undertow", "bounded-loss", "gated-loss", "graceful", "cleangen", "protegofed")
_BASE = (
    "Gemma 3 270M stands where the paper has Vicuna-7B and Llama-2-7B; its weights are those of a 4-bit file, dequantised and kept "
    "in bfloat16, or in float32 where the processor is slow in bfloat16."
)


def _pretrained(dataset: str, source: Source) -> Setting:
    """One real data set on a base that others pre-trained; the first values are all that a run of minutes on two cores allows."""
    return Setting(
        dataset,
        "Gemma 3 270M",
        "real-simplequestions",
        paper_dataset=dataset,
        overrides=(
            *_ANY_SIZE,
            f"data.name={source}",
            "data.train=400",
            "data.test=200",
            "training.batch_size=2",
            "training.lr=2.0e-3",
            "federation.rounds=6",
        ),
        reads=source,
        pretrained=True,
    )


_PRETRAINED = Profile(
    name="pretrained",
    purpose="Gemma 3 270M, which others pre-trained, on questions that people asked; needs --data and `make pretrained`",
    settings=(),
    real=tuple(_pretrained(dataset, source) for dataset, source in _DATASETS),
    grids=Grids(
        prs=(0.01, 0.02, 0.04, 0.06, 0.1),
        rhos=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
        global_rhos=(),
        defended_rhos=(0.2, 0.4, 0.6, 1.0),
        search_rhos=(0.4, 1.0),
        search_top=40,
        search_seeds=2,
        null_rhos=(0.4,),
        guarded_rhos=(0.0, 0.3, 0.6, 1.0),
        counted=True,
        sizes=(100, 200, 400),
        counts=(4, 8, 16, 32),
    ),
    seeds=3,
    few={"fig2a": 2, "fig2b": 2, "fig4a": 2, "fig4b": 2, "fig5": 2, "hypotheses": 2, "matrix": 2, "counts": 2},
    items={
        "fit": ("table1", "fig2a", "fig2b", "fig4a", "fig4b", "fig5", "hypotheses"),
        "sanitization": ("matrix",),
        "counts": ("counts",),
    },
    rules=_RULES,
    deviations=(
        _BASE,
        "40 samples a client and 6 rounds in place of 500 and 100, learning rate 2e-3 in place of 2e-5, batches of 2, LoRA r 4 on "
        "all linear layers: what minutes on two cores allow. Samples, rounds and learning rate were chosen on seed 99, which no "
        "result uses. With half the samples and twice the rounds, at the same cost, samples are learned by heart and ASR moves "
        "from round to round: seed 0 had 72.0 and 92.0 % on SimpleQuestions (natural, badnets), 97.5 and 63.5 % on TriviaQA (n = "
        "200 each; `--set data.train=200 --set federation.rounds=12`).",
        "200 test questions, each asked clean and triggered; at most 32 new tokens.",
        "No Figure 3: its search would take longer than all else.",
    ),
    cost=Cost(
        start=20,
        untouched=85,
        train=36,
        measure=50,
        samples=200,
        questions=200,
        gib=3.3,
        machine="two busy cores, in seconds of the processor",
    ),
)

_GPU = Profile(
    name="gpu",
    purpose="the pretrained base with the paper's 10 clients of 500 samples and 100 rounds; ten minutes of one H200; needs --data",
    settings=(),
    real=(
        replace(
            _pretrained(*_DATASETS[0]),
            overrides=(
                *_ANY_SIZE,
                "data.name=simplequestions",
                "data.train=5000",
                "data.test=1000",
                "training.batch_size=16",
                "training.lr=2.0e-4",
                "federation.rounds=100",
            ),
        ),
    ),
    grids=_FINE,
    seeds=1,
    items={"fit": ("table1",), "sanitization": ("matrix",)},
    rules=_RULES,
    deviations=(
        _BASE,
        "One question set and one seed, so that Table 1 is ten minutes' work; `--only` and `--seeds` take more.",
        "Batches of 16 in place of the lab's 4, learning rate 2e-4 in place of 2e-5 (chosen without a search), LoRA on all linear "
        "layers.",
    ),
    weights=2.7e8,
    peak=989e12,
)

_PAPER = Profile(
    name="paper",
    purpose="Llama-2-7B and Vicuna-7B on TriviaQA and SimpleQuestions, every value of the paper; one 80 GB GPU; needs --data",
    settings=(),
    real=tuple(
        Setting(dataset, model, f"paper-{source}", dataset, model, (f"model.name={name}",), reads=source)
        for model, name in (("Llama-2-7B", "meta-llama/Llama-2-7b-hf"), ("Vicuna-7B", "lmsys/vicuna-7b-v1.5"))
        for dataset, source in reversed(_DATASETS)
    ),
    grids=Grids(
        prs=(0.02, 0.04, 0.06, 0.08, 0.1),
        rhos=_TENTHS,
        global_rhos=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
        defended_rhos=_TENTHS,
        search_rhos=_TENTHS,
        search_top=40,
        search_seeds=3,
        null_rhos=(0.2, 0.5, 0.8),
        matrix_rhos=_WITH_NONE,
    ),
    seeds=3,
    deviations=(
        "What the paper leaves open (sizes, template, LoRA targets and scale, batch size) follows the same lab's later code.",
        "Figures 2 to 5 are run on TriviaQA and Llama-2-7B; the paper does not say which pair they show.",
    ),
    weights=6.74e9,
)

#: For the tests: seconds a run, no meaning.
_TINY = Profile(
    name="tiny",
    purpose="for the tests",
    settings=tuple(
        Setting("built-in world", model, "demo", overrides=_overrides, build=build)
        for _overrides in (
            (
                "data.train=60",
                "data.test=12",
                "federation.clients=5",
                "federation.rounds=3",
                "measure.max_new_tokens=6",
                "measure.bsnr.permutations=20",
            ),
        )
        for model, build in (
            ("built-in base", None),
            ("tiny base", Build("tiny", None, {"hidden": 32, "layers": 1, "steps": 4, "batch": 2, "vocab": 400})),
        )
    ),
    real=(),
    grids=Grids(
        prs=(0.02, 0.1),
        rhos=(0.2, 0.6, 1.0),
        global_rhos=(0.2,),
        defended_rhos=(0.2, 0.6),
        search_rhos=(1.0,),
        search_top=12,
        search_seeds=1,
        null_rhos=(0.4,),
        matrix_rhos=(0.0, 0.6),
        guarded_rhos=(0.0, 0.6),
        long_rounds=3,
        filters=FilterGrid(
            clients=3,
            size=40,
            seeds=2,
            ratios=(0.2,),
            rhos=(1.0,),
            triggers=("natural", "topic"),
            targets=("append", "replace_paris"),
        ),
    ),
    seeds=2,
)

_ALL = {profile.name: profile for profile in (_LAPTOP, _PRETRAINED, _GPU, _PAPER, _TINY)}


def get_profile(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        UserError: no such profile.
    """
    if name not in _ALL:
        shown = [known for known in _ALL if known != "tiny"]
        raise UserError(f"--profile {name}: no such profile{nearest(name, shown)}; choose one of {', '.join(shown)}")
    return _ALL[name]
