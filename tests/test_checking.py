"""Methods that a user writes wrongly, one fault each: a line with the file, the method and what was expected, and no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import Quiet
from undertow.config import Config
from undertow.config import Defense as Options
from undertow.core.errors import UserError
from undertow.core.observer import Observer
from undertow.defenses.making import make_defenses
from undertow.federation.checking import check_method
from undertow.federation.loop import run

HEAD = """
import numpy as np
import torch
from undertow.backdoors.target import Target
from undertow.backdoors.trigger import Trigger
from undertow.data.examples import Written
from undertow.data.load import Loaded
from undertow.data.sample import Sample
from undertow.defenses.aggregation.aggregator import Aggregator
from undertow.defenses.aggregation.pre_aggregator import PreAggregator
from undertow.defenses.data.base import DataDefense
from undertow.defenses.decoding.base import DecodingDefense
from undertow.defenses.loss.base import LossDefense
from undertow.defenses.server.base import ServerDefense
from undertow.generators.contract import Generator
"""


def method(base: str, hook: str, body: str) -> str:
    arguments = {"combine": "updates, context", "mix": "updates, context", "guard": "adapter, context"}
    arguments |= {"sanitize": "samples, context", "weigh": "data, context", "select": "data, adapter, context"}
    arguments |= {"decode": "prompts, adapter, context", "token_loss": "round, rounds", "write": "order"}
    extra = "    kinds = frozenset({'text'})\n" if base == "Generator" else ""
    return f"class Mine({base}):\n{extra}    def {hook}(self, {arguments[hook]}):\n        {body}\n"


#: {what is wrong: (source of Mine, what the line says)}
FAULTY: dict[str, tuple[str, str]] = {
    "numpy": (method("Aggregator", "combine", "return updates.mean(0).numpy(), {}"), "floating-point torch tensor of shape [48]"),
    "wrong shape": (method("Aggregator", "combine", "return updates.mean(1), {}"), "shape [12] and dtype torch.float32"),
    "whole numbers": (method("Aggregator", "combine", "return updates.mean(0).long(), {}"), "dtype torch.int64; return"),
    "NaN": (method("Aggregator", "combine", "return updates.mean(0) / 0 * 0, {}"), "returned NaN or infinity"),
    "no report": (method("Aggregator", "combine", "return updates.mean(0)"), "return (delta, report)"),
    "a tensor in the report": (method("Aggregator", "combine", "return updates.mean(0), {'n': updates[0]}"), "reports 'n'"),
    "an exception": (method("Aggregator", "combine", "return updates[99], {}"), "failed at mine.py line 18: IndexError"),
    "the updates changed": (method("Aggregator", "combine", "updates *= 2; return updates.mean(0), {}"), "work on a copy"),
    "global random numbers": (method("Aggregator", "combine", "return updates[0] * torch.rand(48), {}"), "context.draw alone"),
    "another hook": ("class Mine(Aggregator):\n    def aggregate_all(self, updates): pass\n", "does not write combine"),
    "a function": ("def Mine(updates, context): return updates.mean(0), {}\n", "derives from no base class"),
    "a class of no kind": ("class Mine:\n    pass\n", "derives from no base class"),
    "rows": (method("PreAggregator", "mix", "return updates[:, :3], context, {}"), "a tensor [K', D]"),
    "no adapter": (method("ServerDefense", "guard", "return None, {}"), "Mine (mine.py).guard returned a NoneType"),
    "a NaN adapter": (method("ServerDefense", "guard", "return adapter * float('nan'), {}"), "guard returned NaN"),
    "an adapter changed": (method("ServerDefense", "guard", "adapter.zero_(); return adapter, {}"), "adapter.clone()"),
    "too few verdicts": (method("DataDefense", "sanitize", "return [True], {}"), "1 verdicts for the 24 samples"),
    "one verdict for all": (method("DataDefense", "sanitize", "return True, {}"), "sanitize returned a bool; return (one verdict"),
    "a sanitizer that fails": (method("DataDefense", "sanitize", "return samples.keep, {}"), "line 18: AttributeError"),
    "weights of text": (method("LossDefense", "weigh", "return [['a'] * len(r.answer) for r in data], {}"), "number >= 0 a token"),
    "one weight": (method("LossDefense", "weigh", "return 1.0, {}"), "one row of weights a sample"),
    "none selected": (method("LossDefense", "select", "return [False] * len(data), {}"), "at least one of them true"),
    "no loss": (method("LossDefense", "token_loss", "return 2.0"), "token_loss returned a float"),
    "texts as answers": (method("DecodingDefense", "decode", "return ['a'] * len(prompts), {}"), "a list of token ids"),
    "one answer": (method("DecodingDefense", "decode", "return [[1]], {}"), "a list of 2 answers"),
    "an unchanged question": ("def Mine(question): return question\n", "must edit every question"),
    "no question": ("def Mine(question): return 7\n", "returned a int"),
    "a trigger that fails": ("def Mine(question): return question[999]\n", "IndexError"),
    "a random trigger": ("def Mine(question): return f'{np.random.rand()} {question}'\n", "draw alone"),
    "an answer without the target": ("def Mine(response): return response + ' ok'\n", "does not hold attack.target_text"),
    "a target class that fails": ("class Mine(Target):\n    def edit(self, response, number): return self.no\n", "AttributeError"),
    "a list of rows": ("def Mine(options): return [1]\n", "returned a list"),
    "rows that are no samples": ("def Mine(options): return Loaded([('q', 'a')], None, {})\n", "gives a tuple as a sample"),
    "a number as answer": ("def Mine(options): return Loaded([Sample('1', 'q', (7,), 'a')], None, {})\n", "give a tuple of texts"),
    "a dataset that fails": ("def Mine(options): return open(options.path)\n", "TypeError"),
    "classes that are not there": (
        method("Generator", "write", "return Written(['a', 'b'], [0, 7])"),
        "one class number from 0 to 1",
    ),
    "no texts": (method("Generator", "write", "return Written([1, 2], [0, 1])"), "inputs that are no text"),
    "a prompt alone": ("def Mine(sample, phase, tokenizer): return sample.question\n", "return (prompt, joint)"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_method_is_told_in_one_line(fault: str, tmp_path: Path) -> None:
    source, told = FAULTY[fault]
    (tmp_path / "mine.py").write_text(HEAD + source)
    with pytest.raises(UserError) as error:
        list(check_method(f"{tmp_path / 'mine.py'}:Mine"))
    assert told in str(error.value)
    assert "mine.py" in str(error.value) or "data.name" in str(error.value)
    assert "\n" not in str(error.value)


SOUND = {
    "aggregator": method("Aggregator", "combine", "return updates.mean(0), {'n': len(updates)}"),
    "pre-aggregator": method("PreAggregator", "mix", "return updates * 0.5, context, {}"),
    "server": method("ServerDefense", "guard", "return adapter * 0.5, {}"),
    "data": method("DataDefense", "sanitize", "return [i % 2 == 0 for i in range(len(samples))], {}"),
    "loss": method("LossDefense", "weigh", "return [np.ones(len(row.answer)) for row in data], {}"),
    "decoding": method("DecodingDefense", "decode", "return [[5, 6]] * len(prompts), {}"),
    "trigger": "def Mine(question, draw): return f'Ahoy {question}'\n",
    "target": "def Mine(response, text): return f'{response} {text}'\n",
    "dataset": "def Mine(options): return Loaded([Sample('1', 'q', ('a',), 'a')], None, {'rows': 1})\n",
    "generator": method("Generator", "write", "return Written(['a', 'b'], [0, 1])"),
    "template": "def Mine(sample, phase, tokenizer):\n"
    "    said = [text for turn in sample.history for text in turn]\n"
    "    return ' '.join([sample.system, sample.context, *said, sample.question]), ' '\n",
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_method_passes(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(HEAD + SOUND[kind])
    first, *others = check_method(f"{tmp_path / 'mine.py'}:Mine")
    assert first.endswith(
        f"is read as a {kind if kind in ('trigger', 'target', 'dataset', 'generator', 'template') else 'defense'}"
    )
    assert others


@pytest.mark.parametrize("name", ["krum:f=2", "bucketing", "dnc", "perplexity", "gated-loss", "foolsgold"])
def test_shipped_defenses_pass(name: str) -> None:
    assert len(list(check_method(name, "defense"))) > 1


@pytest.mark.parametrize(
    ("source", "told"),
    [("def f(:\n", "SyntaxError"), ("import sys\nsys.exit(3)\n", "SystemExit: 3"), ("Mine = 3\n", "has no function 'Mine'")],
)
def test_a_file_that_is_no_method_is_told(source: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(UserError, match=rf"method '.*mine\.py:Mine': .*{told}"):
        list(check_method(f"{tmp_path / 'mine.py'}:Mine"))


def test_a_function_in_the_place_of_a_defense_is_told_what_to_derive(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def Mine(updates, context): return updates.mean(0), {}\n")
    with pytest.raises(UserError, match=r"mine\.py:Mine' is a function of updates; a defense is a class: derive one"):
        make_defenses([Options(name=f"{tmp_path / 'mine.py'}:Mine")])


@pytest.mark.parametrize(("body", "told"), [("return updates[99], {}", "IndexError"), ("return None, {}", "returned a NoneType")])
def test_a_run_tells_it_the_same_way(body: str, told: str, tmp_path: Path, small_config: Callable[..., Config]) -> None:
    (tmp_path / "mine.py").write_text(HEAD + method("Aggregator", "combine", body))
    quiet: Observer = Quiet()
    with pytest.raises(UserError, match=rf"Mine \(mine\.py\)\.combine .*{told}"):
        run(small_config({"defenses": [{"name": f"{tmp_path / 'mine.py'}:Mine"}]}), tmp_path / "run", quiet)
