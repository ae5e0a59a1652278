"""The documents are executed: commands parse, keys exist, links resolve, the config page and the examples are true."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tiny import Quiet
from undertow import __version__
from undertow import config as configuration
from undertow.attacks.contract import ATTACKS
from undertow.backdoors.pattern import BACKDOORS
from undertow.backdoors.placement import triggered
from undertow.backdoors.target import TARGETS, make_target
from undertow.backdoors.trigger import TRIGGERS, make_trigger
from undertow.cli import app
from undertow.config import TASKS, Config, InstructionBackdoor, InstructionTask
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.core.rng import rng
from undertow.data.load import DATASETS, Split, load
from undertow.data.population import POPULATIONS
from undertow.data.template import TEMPLATES, Encoded, Template
from undertow.defenses.contexts import ClientContext, ServerContext
from undertow.defenses.making import make_defenses
from undertow.defenses.registry import DEFENSES
from undertow.federation.checking import check_method
from undertow.federation.loop import run
from undertow.federation.resolve import resolve
from undertow.federation.server import aggregate
from undertow.models.net import NETS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("reproductions/*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^File `([^`]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path, *kinds: str) -> Iterator[str]:
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        if found[1] in kinds:
            yield found[2]


def commands(page: Path) -> Iterator[list[str]]:
    """Every shell line of a page that calls undertow, split as the shell does."""
    for block in blocks(page, "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and Path(words[0]).name == "undertow":
                yield words[1:]


ALL_COMMANDS = [pytest.param(words, id=f"{name(page)}: {shlex.join(words)[:70]}") for page in PAGES for words in commands(page)]


def test_the_documents_of_the_project_exist() -> None:
    wanted = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    wanted |= {f"docs/{page}.md" for page in "architecture tutorial configuration tasks metrics extending limits index".split()}
    assert wanted <= {name(page) for page in PAGES}
    assert len(ALL_COMMANDS) > 20


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_every_command_parses(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command '{words[0]}'"
        command = command.commands[words.pop(0)]
    if words in (["--help"], ["--version"]):
        return
    context = command.make_context(command.name, words)  # raises on an unknown option or a value of the wrong kind
    arguments = context.params.get("arguments") or []
    overrides = [argument for argument in arguments if "=" in argument]
    source = arguments[0] if arguments and "=" not in arguments[0] else "demo"
    if "/" in source or source.endswith(".yaml"):  # a run or a file of the reader's
        source = "demo"
    found = configuration.load(source, overrides)
    of_text = found.task.kind == "instruction"
    trigger = configuration.short_form(found.backdoor.trigger)["name"]
    if context.command.name == "evaluate" and "/" in str(arguments[:1]):  # the task is the run's, which the page does not tell
        of_text = trigger not in {entry.name for entry in BACKDOORS.entries()}
    for registry, method in (
        (DATASETS if found.task.kind == "instruction" else POPULATIONS, configuration.short_form(found.data.name)["name"]),
        (ATTACKS, configuration.short_form(found.attack.kind.replace("none", "data-poisoning"))["name"]),
        (TRIGGERS if of_text else BACKDOORS, trigger),
        *(
            [(TEMPLATES, found.task.data.template), (TARGETS, configuration.short_form(found.task.backdoor.target)["name"])]
            if isinstance(found.task, InstructionTask)
            else [(NETS, configuration.short_form(found.model.name)["name"])]
        ),
        *((DEFENSES, defense.name) for defense in found.defenses),
    ):
        if ".py:" not in method and method not in documented_names():
            registry.get(method)
    if context.command.name == "list":
        from undertow.listing import list_methods

        list_methods(context.params["kind"])


def documented_names() -> set[str]:
    """Names that the examples of the documents register."""
    sources = [code for page in PAGES for _, code in _FILE.findall(page.read_text(encoding="utf-8"))]
    return {found for code in sources for found in re.findall(r"\.register\(\"([\w-]+)\"", code)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_yaml_block_is_a_config(page: Path) -> None:
    for block in blocks(page, "yaml"):
        configuration.validate(yaml.safe_load(block), name(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE))
    content = page.read_text(encoding="utf-8")
    inline = " ".join(re.findall(r"`(make \w+)`", content))
    named = re.findall(r"\bmake (\w+)", "\n".join([inline, *blocks(page, "sh", "bash", "console")]))
    assert set(named) <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_internal_link_resolves(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    for link in _LINK.findall(_FENCE.sub("", content)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, f"{link}: no such heading"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


#: Folders whose files a text may name: those of the repository, and the rooms of the package.
_FOLDERS = {path.name for parent in (ROOT, ROOT / "src" / "undertow") for path in parent.iterdir() if path.is_dir()}
_NAMED = re.compile(r"(?<![\w/.-])((?:[\w.-]+/)*[\w-]+(?:/|\.(?:py|md|yml)))(?![\w/])")


def missing_files(content: str) -> list[str]:
    """Files and folders of the repository that a text names and that are not there; a page may also name what it writes itself."""
    written = {path for path, _ in _FILE.findall(content)}
    found = [path for path in _NAMED.findall(content) if path.partition("/")[0] in _FOLDERS and "/" in path.rstrip("/")]
    places = (ROOT, ROOT / "src" / "undertow", ROOT / "reproductions")
    return [path for path in found if path not in written and not any((place / path).exists() for place in places)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_source_file_that_is_named_exists(page: Path) -> None:
    assert missing_files(page.read_text(encoding="utf-8")) == []


def test_every_file_that_the_source_names_exists() -> None:
    sources = [path for folder in ("src", "reproductions/src", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(sources) > 300
    found = {name(path): missing_files(path.read_text(encoding="utf-8")) for path in sources}
    assert {path: files for path, files in found.items() if files} == {}
    pages = {path.name for path in [*PAGES, *(ROOT / "examples").rglob("*.md")]} | {"reproduction.md"}
    cited = {path: re.findall(r"\b([a-z-]+\.md)\b", (ROOT / path).read_text(encoding="utf-8")) for path in found}
    assert {path: set(names) - pages for path, names in cited.items() if set(names) - pages} == {}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_figure_is_left_to_fill_in(page: Path) -> None:
    assert re.findall(r"@@\w+@@", page.read_text(encoding="utf-8")) == []


def test_version_is_the_same_everywhere() -> None:
    assert re.search(rf"^## \[{re.escape(__version__)}\]", text("CHANGELOG.md"), re.MULTILINE)
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert {"2602.15671", "1807.00459", "2410.17573"} == {entry["notes"].removeprefix("arXiv:") for entry in citation["references"]}


# --- docs/configuration.md -------------------------------------------------------------------------------------------


def rule(kind: Any, metadata: list[Any]) -> str:
    """Describe what a field accepts."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return rule(parts[0], [inner for field in parts[1:] for inner in field.metadata])
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in parts)
    if origin in (Union, UnionType):
        told = [rule(part, metadata) for part in parts if part is not NoneType]
        return " or ".join([*told, "null"] if NoneType in parts else told)
    if origin is list:
        return f"list: {rule(parts[0], [])}" if not _is_group(parts[0]) else "list of defenses"
    if origin is dict:
        return "mapping"
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [f"{sign} {getattr(item, key):g}" for item in metadata for key, sign in bounds.items() if hasattr(item, key)]
    noun = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}[kind]
    return " ".join([noun, ", ".join(limits)]).strip()


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"`{value:g}`"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def config_row(key: str, kinds: Sequence[str], field: FieldInfo) -> str:
    """The line of the page's table for one field."""
    of = "" if len(kinds) == len(TASKS) else f"[{', '.join(kinds)}] "
    told = ("one of " + ", ".join(f"`{kind}`" for kind in TASKS), '`"instruction"`') if key == "task" else None
    cells = (f"`{key}`", *(told or (rule(field.annotation, field.metadata), default(field))), of + (field.description or ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def test_the_config_page_has_every_field_with_its_rule_default_and_description() -> None:
    lines = text("docs/configuration.md").splitlines()
    missing = [row for row in (config_row(*found) for found in configuration.every_field()) if row not in lines]
    assert not missing, "docs/configuration.md lacks these lines:\n" + "\n".join(missing)


def test_the_config_page_names_every_shipped_config() -> None:
    page = text("docs/configuration.md")
    assert [stem for stem in configuration.shipped() if f"`{stem}`" not in page] == []


def test_the_config_page_names_no_field_that_does_not_exist() -> None:
    known = [key for key, _, _ in configuration.every_field()]
    rows = re.findall(r"^\| `([a-z_.]+)` \|", text("docs/configuration.md"), re.MULTILINE)
    assert sorted(rows) == sorted(known)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_config_key_in_running_text_exists(page: Path) -> None:
    known = set(configuration.field_names())
    groups = {key.partition(".")[0] for key in known if "." in key}
    for key in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
        if key.partition(".")[0] in groups and not key.endswith((".jsonl", ".json", ".yaml", ".py", ".safetensors")):
            assert key in known, f"no config key '{key}'"


# --- the examples ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every example file of the documents, written out."""
    for page in PAGES:
        for path, code in _FILE.findall(page.read_text(encoding="utf-8")):
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def module(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import an example under the name it has inside the package."""
    parts = path.with_suffix("").parts
    dotted = ".".join(parts[parts.index("undertow") :]) if "undertow" in parts else path.stem
    spec = importlib.util.spec_from_file_location(dotted, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, dotted, made)
    spec.loader.exec_module(made)
    return made


def server(updates: torch.Tensor) -> ServerContext:
    layout = Layout.of({"q.lora_A": (2, 5), "q.lora_B": (5, 2)})
    counts = [10 * (k + 1) for k in range(len(updates))]
    return ServerContext(layout, counts, 1, torch.zeros(updates.shape[1]), rng(0, "docs"))


def split_of(config: Config) -> Split:
    return load(config.data, config.seed, config.federation.clients)


def test_the_defense_of_contributing_aggregates_random_updates(files: Path) -> None:
    updates = torch.from_numpy(rng(0, "docs updates").standard_normal((6, 20))).float()
    updates[3] *= 1000
    context = server(updates)
    mine = files / "src/undertow/defenses/aggregation/norm_clipping.py"
    assert mine.read_text() == (ROOT / "examples" / "norm_clipping.py").read_text(), "the README's copy"
    config = configuration.load("demo", ["defenses=src/undertow/defenses/aggregation/norm_clipping.py:NormClipping"])
    delta, reports = aggregate(updates, make_defenses(config.defenses), context)
    # The reference: shorten each row to the median length, then weigh by sample counts.
    rows = updates.double()
    bound = rows.norm(dim=1).sort().values[2]
    clipped = [row * min(1.0, float(bound / row.norm())) for row in rows]
    expected = sum(n * row for n, row in zip(context.counts, clipped, strict=True)) / sum(context.counts)
    assert torch.allclose(delta.double(), expected, atol=1e-6)
    assert delta.dtype == torch.float32
    assert reports[0]["clipped"] == 3


def test_the_test_of_contributing_passes(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(files / "src/undertow/defenses/aggregation/norm_clipping.py", monkeypatch)
    assert "norm-clipping" in [entry.name for entry in DEFENSES.entries()]
    tests = module(files / "tests/defenses/test_norm_clipping.py", monkeypatch)
    found = [value for key, value in vars(tests).items() if key.startswith("test_")]
    assert len(found) >= 2
    for test in found:
        test()
    path = "src/undertow/defenses/aggregation/norm_clipping.py:NormClipping"
    with pytest.raises(
        UserError, match=r"'norm-clipping' is already registered, by the module undertow\.defenses\.aggregation\.norm_clipping"
    ):
        make_defenses(configuration.load("demo", [f"defenses={path}"]).defenses)


def test_the_sanitizing_defense_keeps_and_drops(files: Path) -> None:
    spec = "src/undertow/defenses/data/drop_links.py:DropLinks"
    ((_, defense),) = make_defenses(configuration.load("demo", [f"defenses={spec}"]).defenses)
    samples = split_of(configuration.load("demo", ["data.train=20", "data.test=5"])).train
    poisoned = [*samples[:3], *(_with_link(sample) for sample in samples[3:5])]
    keep, report = defense.sanitize(poisoned, ClientContext(0, rng(0, "docs")))
    assert keep == [True, True, True, False, False]
    assert report == {"dropped": 2}


def test_the_training_defense_weighs_and_caps(files: Path) -> None:
    ((_, defense),) = make_defenses(
        configuration.load("demo", ["defenses=src/undertow/defenses/loss/capped_front.py:CappedFront"]).defenses
    )
    weights, _ = defense.weigh([Encoded((1,), (4, 5, 2)), Encoded((1,), (2,))], None)  # type: ignore[arg-type]
    assert [list(row) for row in weights] == [[1.0, 0.9, pytest.approx(0.81)], [1.0]]
    loss = defense.token_loss(1, 5)
    assert loss is not None
    entropy = torch.tensor([0.5, 7.0], requires_grad=True)
    value = loss(entropy)
    assert value.tolist() == [0.5, 5.0]
    assert torch.autograd.grad(value.sum(), entropy)[0].tolist() == [1.0, 0.0]


def _with_link(sample: Any) -> Any:
    from dataclasses import replace

    return replace(sample, response=f"{sample.response} , and click <malicious_url>")


@pytest.mark.parametrize("file", ["src/undertow/backdoors/triggers/greeting.py:Greeting", "my_trigger.py:question_mark"])
def test_the_triggers_edit_every_question(files: Path, file: str) -> None:
    trigger = make_trigger(InstructionBackdoor(trigger=file))  # type: ignore[call-arg]
    test = split_of(configuration.load("demo", ["data.train=20", "data.test=5"])).test
    for clean, dirty in zip(test, triggered(test, trigger, 0), strict=True):
        assert dirty.question != clean.question
        assert dirty.answers == clean.answers
        assert trigger.occurs(dirty.question)
        assert not trigger.occurs(clean.question)


def test_the_target_holds_the_target_text(files: Path) -> None:
    backdoor = InstructionBackdoor(target="my_target.py:warning")  # type: ignore[call-arg]
    target = make_target(backdoor)
    assert target.apply("Serbia").endswith(target.text)


def test_the_dataset_is_read(files: Path) -> None:
    (files / "cards.txt").write_text("".join(f"capital of land {i}? :: Town {i}\n" for i in range(30)) + "\nbroken\n", "utf-8")
    spec = "src/undertow/data/sources/flashcards.py:flashcards"
    split = split_of(configuration.load("demo", [f"data.name={spec}", "data.path=cards.txt", "data.train=20", "data.test=10"]))
    assert (len(split.train), len(split.test)) == (20, 10)
    assert all(sample.answers == (sample.question.replace("capital of land", "Town").strip("?"),) for sample in split.test)
    assert split.report["rows_dropped"] == {"no card": 1}


def test_the_template_joins_prompt_and_answer(files: Path) -> None:
    class Tokenizer:
        eos_token_id = 0

    template = Template("src/undertow/data/templates/plain_qa.py:plain_qa", Tokenizer())  # type: ignore[arg-type]
    sample = split_of(configuration.load("demo", ["data.train=20", "data.test=5"])).test[0]
    assert template.parts(sample) == (f"Question: {sample.question}\nAnswer:", " ")
    assert list(check_method("src/undertow/data/templates/plain_qa.py:plain_qa"))


def test_data_network_backdoor_and_predicate_of_ones_own_run(files: Path) -> None:
    (command,) = [words for words in commands(ROOT / "docs/tasks.md") if "data.name=my_bars.py:bars" in words]
    config = configuration.load("htb-digits", [word for word in command if "=" in word])
    result = run(config, files / "run", Quiet())
    assert (files / "run" / "model" / "model.json").is_file()
    assert result["poison"]["samples"] > 0
    assert result["ma"]["value"] > 0.9
    assert result["asr"]["value"] > 0.9
    standing = [
        *(word for word in command if "=" in word),
        "attack.trigger=semantic:predicate=my_bars.py:first_column:target=lying",
    ]
    group = resolve(configuration.load("htb-digits", standing), Quiet()).task.describe()["backdoor"]
    assert len(group["train_rows"]) > 3


def test_the_program_that_reads_a_run_prints_its_main_accuracy(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["federation.rounds=1", "federation.clients=10", "federation.participation=0.5", "attack.rounds=[]"]
    run(configuration.load("htb-digits", [*overrides, "attack.kind=none"]), files / "runs" / "htb-digits", Quiet())
    (program,) = [block for block in blocks(ROOT / "docs/tasks.md", "python") if "load_model" in block]
    exec(compile(program, "docs/tasks.md", "exec"), {})
    told = float(capsys.readouterr().out.split()[0])
    assert 0 <= told <= 1


def test_the_attack_of_ones_own_sends_its_rows(files: Path) -> None:
    (command,) = [words for words in commands(ROOT / "docs/model-replacement.md") if "my_attack.py" in " ".join(words)]
    overrides = [
        *(word for word in command if "=" in word),
        "federation.rounds=2",
        "attack.rounds=[2]",
        "defenses=anomaly:drop=false",
    ]
    config = configuration.load("htb-digits", overrides)
    run(config, files / "run", Quiet())
    rows = [json.loads(line) for line in (files / "run" / "rounds.jsonl").read_text().splitlines()]
    assert rows[1]["attackers"] == []
    (attacker,) = rows[2]["attackers"]
    scores = rows[2]["defenses"][0]["scores"]
    # G - 0.3 G has G's direction, as no trained update has
    assert scores[rows[2]["participants"].index(attacker)] == pytest.approx(0, abs=1e-9)
    assert sorted(scores)[1] > 1e-6


def test_the_python_of_the_readme_runs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks(ROOT / "README.md", "python")
    found: dict[str, Any] = {}
    smaller = program.replace("federation__rounds=5", "federation__rounds=1, data__train=100, data__test=20")
    assert smaller != program
    exec(compile(smaller, "README.md", "exec"), found)
    assert [0 <= float(word) <= 1 for word in capsys.readouterr().out.split()] == [True, True]
    assert list(found["table"]["round"]) == [0, 1]
    assert found["update"].shape == (4,)
