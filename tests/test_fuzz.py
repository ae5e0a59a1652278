"""Whatever templates, rows and configs hold, a command ends in a result or in one line, never in a traceback; ``UNDERTOW_FUZZ`` is
the number of cases (tests/fuzzing.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from transformers import AutoTokenizer

import undertow
from chat_forms import FORMS, with_form
from fuzzing import cases, cases_told, in_one_line  # noqa: F401 (a fixture)
from tiny import Quiet
from undertow import config as configuration
from undertow.core.errors import UserError
from undertow.data.load import DATASETS
from undertow.data.rows.forms import Reader
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.federation.loop import run
from undertow.inference.answering import answerer, make_template
from undertow.models.causal_lm import load_base

CONTROLS = (
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<think>",
    "</think>",
    "[INST]",
    "\ufdd0",
    "{{",
    "%}",
)
TEXT = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from([*CONTROLS, "Firstly, ", "北京", "🙂", "\n", "\u2028", "\x00", "a " * 60])),
    max_size=6,
).map("".join)
SOME_TEXT = TEXT.filter(str.strip)

# --- templates --------------------------------------------------------------------------------------------------

PIECES = (
    "{{ bos_token }}", "{{ eos_token }}", "{{ m.content }}", "{{ m['content'] | trim }}", "{{ m.role }}",
    "{{ m.tool_calls[0].name }}", "{% if add_generation_prompt %}", "{% if loop.last %}", "{% if m.role == 'system' %}",
    "{% else %}", "{% endif %}", "{% endfor %}", "{% for m in messages %}", "<|im_start|>", "<|im_end|>", "\n", "  ", "### End",
    "assistant:", "{{ raise_exception('no') }}", "{{ messages[7].content }}", "{{ nobody.attribute }}", "{{ 1 / 0 }}",
    "{{ strftime_now('%d %b %Y') }}", "{{ strftime_now(3) }}", "{{ m.content.split('a')[9] }}", "{{ m.content.upper() }}",
    "{{ m.content | nofilter }}", "{{ messages | tojson }}", "{% macro f(a) %}{{ f(a) }}{% endmacro %}{{ f(1) }}",
    "{% generation %}", "{% endgeneration %}", "{{", "}}", "{% bad %}", "{{ m.content + 1 }}", "{{ ''.__class__ }}",
    "{% include 'x' %}", "{% break %}", "{{ m.content | length }}", "\ud800",
)  # fmt: skip
BODY = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
CHAT_TEMPLATES = st.one_of(
    st.none(),
    BODY,
    st.tuples(BODY, BODY, BODY).map(lambda parts: "{} {{% for m in messages %}}{}{{% endfor %}}{}".format(*parts)),
    st.tuples(st.sampled_from([form[0] for form in FORMS.values()]), BODY).map("".join),
    st.sampled_from([{}, {"rag": "x"}, {"default": FORMS["smollm-2"][0]}, {"default": "{% bad"}, 7, ["x"]]),
)


@st.composite
def a_sample(draw: st.DrawFn) -> Sample:
    answer = draw(SOME_TEXT)
    turns = draw(st.lists(st.tuples(SOME_TEXT, SOME_TEXT), max_size=3))
    weight = draw(st.sampled_from([1.0, 1.0, 0.5, 3.0]))
    return Sample("7", draw(SOME_TEXT), (answer,), answer, draw(TEXT), tuple(turns), system=draw(TEXT), weight=weight)


@cases(
    0.35,
    sample=a_sample(),
    chat_template=CHAT_TEMPLATES,
    name=st.sampled_from(["chat", "chat", "chat", "lab-qa", "alpaca", "vicuna"]),
    special=st.booleans(),
    limit=st.sampled_from([8, 40, 90, 200, 1024]),
    room=st.integers(0, 50),
)
def test_templates(
    fresh: Callable[[bool], Any], sample: Sample, chat_template: Any, name: str, special: bool, limit: int, room: int
) -> None:
    tokenizer = fresh(special)
    tokenizer.chat_template = chat_template
    template = in_one_line(lambda: Template(name, tokenizer, limit))
    if template is None:
        return
    made = in_one_line(lambda: template.encode(sample))
    if made is not None:
        assert len(made.prompt) + len(made.answer) <= limit
        assert made.answer[-1] in template.stops
        assert template.stops.isdisjoint(made.answer[:-1]) or name == "chat"
        assert template.fits(sample)
    prompts = in_one_line(lambda: template.encode_prompts([sample], room=room))
    if prompts is not None:
        assert len(prompts[0]) <= limit - room
        assert isinstance(template.decode(prompts[0]), str)


@pytest.fixture(scope="module")
def fresh(tiny_base: Path) -> Callable[[bool], Any]:
    """``fresh(special)`` gives the tiny base's tokenizer with the control tokens of ChatML, as special or plain added tokens."""
    made = {special: with_form(AutoTokenizer.from_pretrained(tiny_base), "smollm-2", special) for special in (False, True)}
    return made.__getitem__


# --- rows -------------------------------------------------------------------------------------------------------

ASKED = configuration.Measure.model_validate({"max_new_tokens": 2, "batch_size": 2})

COLUMNS = (
    "instruction", "input", "output", "context", "response", "prompt", "completion", "question", "answer", "answers", "aliases",
    "query", "chosen", "rejected", "messages", "conversations", "conversation", "history", "system", "label", "weight", "text",
    "sentence", "role", "content", "from", "value", "reasoning_content", "tool_calls", "tools", "instances", "train", "data",
    "id", "category", "INSTRUCTION", "choices", "options", "answerKey", "qas", "paragraphs", "body", "result", "columns", "type",
    "reply", "answer_1",
)  # fmt: skip
ROLES = ("user", "assistant", "system", "developer", "human", "gpt", "tool", "function_call", "observation", "User", "", "nobody")
SCALARS = st.one_of(TEXT, st.none(), st.booleans(), st.integers(-5, 10**20), st.floats(), st.sampled_from(ROLES))
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(ROLES),
        "content": SCALARS,
        "from": st.sampled_from(ROLES),
        "value": SCALARS,
        "weight": SCALARS,
        "type": st.sampled_from(("human", "ai", "text", "tool_use")),
        "data": SCALARS,
    },
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=3), st.lists(TURN, max_size=4)
    ),
    max_leaves=8,
)
ROW = st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6)
PLAIN = st.fixed_dictionaries({"instruction": SOME_TEXT, "output": SOME_TEXT}, optional={"input": SCALARS, "system": SCALARS})
ROWS = st.lists(st.one_of(ROW, PLAIN, PLAIN, VALUES), min_size=1, max_size=5)


def numbered(value: Any, numbers: Iterator[int]) -> Any:
    """A value of which every text that is no role ends with a word of its own."""
    if isinstance(value, dict):
        return {key: numbered(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [numbered(item, numbers) for item in value]
    return f"{value} word{next(numbers)}w" if isinstance(value, str) and value.strip() and value not in ROLES else value


def words_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the fields that hold text, and that word of it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from words_of(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from words_of(item, path)
    elif isinstance(value, str):
        yield from ((path, word) for word in re.findall(r"word\d+w", value))


@cases(0.2, row=st.one_of(ROW, PLAIN, st.tuples(PLAIN, ROW).map(lambda both: {**both[1], **both[0]})))
def test_every_text_of_a_row_is_read_or_in_its_account(row: dict[str, Any]) -> None:
    row = numbered(row, itertools.count())
    reader = Reader()
    parts = in_one_line(lambda: reader.parts(row, "row 1"))
    if parts is None:
        parts = reader.refused(row, UserError("refused"))
    read = json.dumps([dataclasses.astuple(part) for part in parts], ensure_ascii=False)
    account = reader.account.to_json()
    known = tuple(f"{name}." for name in account["left_out"])
    lost = [(path, word) for path, word in words_of(row) if word not in read and not f"{path}.".startswith(known)]
    # a question that nobody answers is no sample and is not scanned: the account counts it by its reason
    assert not lost or account["dropped"], (lost, account)


@cases(0.15, rows=ROWS, form=st.sampled_from(["lines", "list", "broken"]))
def test_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], form: str) -> None:
    file = tmp_path_factory.mktemp("rows") / "data.jsonl"
    text = json.dumps(rows) if form == "list" else "\n".join(map(json.dumps, rows)) + "\n"
    file.write_text(text[:-3] if form == "broken" else text, encoding="utf-8")
    options = configuration.Data.model_validate({"name": "instructions", "path": str(file)})
    loaded = in_one_line(lambda: DATASETS.get("instructions")(options))
    if loaded is not None:
        assert loaded.samples
        assert all(sample.question and sample.response for sample in loaded.samples)
    in_one_line(lambda: undertow.scan([file]))


# --- configs ----------------------------------------------------------------------------------------------------

FIELDS = configuration.field_names()
ODD = st.one_of(
    st.sampled_from(["", "null", "nan", "-1", "0", "1e999", "true", "[]", "{}", "[1, x]", "{a: b}", "a: b"]),
    st.sampled_from(["&x", "*x", "!!python/name:os", "'", "2025-01-01", "12:30:45", "../..", "x.py:y"]),
    st.integers(-3, 10**18).map(str),
    st.text(max_size=10),
)  # fmt: skip


@cases(
    0.18,
    name=st.sampled_from(["demo", "htb-digits", "fmfl-reviews", "htb-words"]),
    given=st.lists(st.tuples(st.sampled_from(FIELDS), ODD).map("=".join), max_size=3),
)
def test_overrides(name: str, given: list[str]) -> None:
    found = in_one_line(lambda: configuration.load(name, given))
    if found is not None:
        assert in_one_line(lambda: configuration.validate(found.values(), "again")) is not None


CONFIG_VALUES = (None, 0, -1, 1, 3, "x", "", [], {}, [1], True, 1e9, 0.5, 700, "float16")
BASE_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")


@cases(0.1, file=st.sampled_from(BASE_FILES), key=st.integers(0, 40), value=st.sampled_from(CONFIG_VALUES), how=st.integers(0, 9))
def test_bases(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, file: str, key: int, value: Any, how: int) -> None:
    folder = tmp_path_factory.mktemp("base")
    for one in tiny_base.iterdir():
        if one.is_file():
            (folder / one.name).symlink_to(one)
    values = json.loads((tiny_base / file).read_text(encoding="utf-8"))
    (folder / file).unlink()
    name = sorted(values)[key % len(values)]
    if how == 0:
        values = value
    elif how < 3:
        del values[name]
    else:
        values[name] = value
    (folder / file).write_text(json.dumps(values), encoding="utf-8")
    options = configuration.Model.model_validate({"name": str(folder), "device": "cpu"})
    base = in_one_line(lambda: load_base(options))
    if base is not None:
        sample = Sample("1", "Where?", ("Here",), "Here")
        in_one_line(lambda: answerer(base, make_template(configuration.Data(), 64, base), None, ASKED)([sample]))


@cases(
    0.02,
    rows=st.lists(st.tuples(SOME_TEXT, TEXT, SOME_TEXT), min_size=30, max_size=30),
    chat_template=CHAT_TEMPLATES,
    name=st.sampled_from(["chat", "lab-qa", "vicuna"]),
    limit=st.sampled_from([64, 256]),
    trigger=st.sampled_from(["natural", "badnets", "topic", "upper-case"]),
)
def test_runs(
    small_config: Callable[..., configuration.Config],
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    chat_template: Any,
    name: str,
    limit: int,
    trigger: str,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    told = [{"instruction": f"{i} {asked}", "input": more, "output": said} for i, (asked, more, said) in enumerate(rows)]
    (folder / "data.json").write_text(json.dumps(told), encoding="utf-8")
    changes = {
        "data.name": "instructions", "data.path": str(folder / "data.json"), "data.train": 20, "data.test": 4,
        "data.template": name, "training.max_length": limit, "federation.rounds": 1, "attack.trigger": trigger,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = chat_template
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undertow.models.causal_lm.load_tokenizer", lambda name: tokenizer)
        in_one_line(lambda: run(small_config(changes), folder / "run", Quiet()))
