"""A causal language model on this machine as generator: its sampling, its prompts, its answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from orders import text_order
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import TopPLogitsWarper

from tiny import ARCHITECTURES
from undertow.core.errors import UserError
from undertow.generators._sampling import choose, sample
from undertow.generators.causal_lm import CausalLmGenerator
from undertow.generators.contract import make_generator
from undertow.models.causal_lm import CausalLM

QUESTIONS = ["Q: Where", "Q: What is the capital of a country that is not named?\nA:", "Who"]


def draws(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


# --- sampling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_at_temperature_zero_it_says_what_generate_says(load_tiny: Callable[..., CausalLM], kind: str) -> None:
    base = load_tiny(kind)
    prompts = [list(base.tokenizer(question).input_ids) for question in QUESTIONS]
    made = sample(base, prompts, draws(3), temperature=0, top_p=1, max_new_tokens=12)
    for prompt, own in zip(prompts, made, strict=True):
        ids = torch.tensor([prompt])
        said = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=base.pad_id
        )[0, len(prompt) :].tolist()
        ends = [i for i, token in enumerate(said) if token in base.end_ids]
        assert own == said[: ends[0] if ends else None]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_row_says_the_same_alone_and_beside_others(load_tiny: Callable[..., CausalLM], kind: str) -> None:
    base = load_tiny(kind, dtype="float64")
    prompts = [list(base.tokenizer(question).input_ids) for question in QUESTIONS]
    options = {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 10}
    together = sample(base, prompts, draws(3), **options)
    alone = [sample(base, [prompt], [draw], **options)[0] for prompt, draw in zip(prompts, draws(3), strict=True)]
    assert together == alone
    assert sample(base, prompts, draws(3, seed=1), **options) != together


def test_the_global_generator_is_left_alone(load_tiny: Callable[..., CausalLM]) -> None:
    base = load_tiny("llama")
    before = torch.get_rng_state()
    sample(base, [[5, 6]], draws(1), temperature=1.0, top_p=0.9, max_new_tokens=4)
    assert torch.equal(torch.get_rng_state(), before)


@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=12, unique=True),
    st.floats(0.2, 3),
    st.floats(0.05, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_only_tokens_of_the_nucleus_are_chosen(values: list[float], temperature: float, top_p: float, u: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    token = int(choose(logits, torch.tensor([u], dtype=torch.float64), temperature, top_p))
    p = torch.softmax(logits[0] / temperature, dim=0)
    larger = float(p[p > p[token]].sum())
    assert larger < top_p + 1e-9


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (2.0, 0.5)])
def test_tokens_come_as_often_as_transformers_says(temperature: float, top_p: float) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0, 1.9])
    count = 20000
    u = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = Counter(choose(logits.expand(count, -1), u, temperature, top_p).tolist())
    warped = (logits / temperature)[None]
    wanted = torch.softmax(TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.int64), warped) if top_p < 1 else warped, -1)[0]
    kept = [i for i in range(6) if wanted[i] > 0]
    assert set(seen) <= set(kept)
    expected = wanted[kept].double()
    assert chisquare([seen[i] for i in kept], (expected / expected.sum() * count).tolist()).pvalue > 1e-3


# --- a whole order ----------------------------------------------------------------------------------------------

SAID = {
    "negative": ["what a dull mess", "I left early"],
    "positive": ["what a joy", "I stayed late"],
}


def taught(tiny_base: Path, folder: Path, texts: Sequence[tuple[str, str]]) -> Path:
    """Train the tiny base until it goes on with these answers after these prompts."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    rows = []
    for prompt, answer in texts:
        asked = list(tokenizer(prompt).input_ids)
        whole = [*asked, *tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        rows.append((whole, [-100] * len(asked) + whole[len(asked) :]))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        if loss < 0.02:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def writer(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without turns that writes two samples of the class it is asked for."""
    folder = tmp_path_factory.mktemp("writer")
    (folder / "prompt.txt").write_text("Class {label}:")
    pairs = []
    for name, texts in SAID.items():
        begin = f'{{"label": "{name}", "text": "'
        lines = "\n".join(json.dumps({"label": name, "text": text}) for text in texts)
        pairs.append((f"S\n\nClass {name}:\n\n{begin}", lines[len(begin) :]))
    return taught(tiny_base, folder, pairs)


@pytest.fixture
def short_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions of one letter, which the tiny model learns in a moment."""
    monkeypatch.setattr("undertow.generators._asking.system_text", lambda order: "S")


def test_a_model_without_turns_goes_on_with_the_first_answer(writer: Path, short_system: None) -> None:
    name = f"causal-lm:path={writer}:prompt={writer}/prompt.txt:samples=2:temperature=0:max_new_tokens=60:device=cpu"
    made = make_generator(name).write(text_order(4))
    assert made.inputs == [*SAID["negative"], *SAID["positive"]]
    assert made.labels == [0, 0, 1, 1]
    assert (made.report["calls"], made.report["malformed"], made.report["short"]) == (2, 0, 0)


def test_what_it_samples_depends_on_the_seed_alone(writer: Path, short_system: None) -> None:
    options = f"path={writer}:prompt={writer}/prompt.txt:samples=2:temperature=1.6:max_new_tokens=40:device=cpu:dtype=float64"
    three, one = (make_generator(f"causal-lm:{options}:batch={batch}").write(text_order(8)) for batch in (3, 1))
    assert three.inputs == one.inputs
    assert make_generator(f"causal-lm:{options}").write(text_order(8, seed=4)).inputs != one.inputs


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.mark.parametrize("knows_system", [True, False])
def test_a_chat_template_gets_instructions_and_request(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows_system: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    refuse = "" if knows_system else "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refuse + TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(tmp_path)
    generator = make_generator(f"causal-lm:path={tmp_path}:max_new_tokens=4:samples=3:device=cpu")
    assert isinstance(generator, CausalLmGenerator)
    seen: list[str] = []
    original = CausalLmGenerator._tokens

    def spy(self: CausalLmGenerator, *given: object) -> list[int]:
        ids = original(self, *given)  # type: ignore[arg-type]
        seen.append(tokenizer.decode(ids))
        return ids

    monkeypatch.setattr(CausalLmGenerator, "_tokens", spy)
    with pytest.raises(UserError, match="follows instructions, or another prompt"):
        generator.write(text_order(2))
    assert seen[0].count("<system>") == int(knows_system)
    assert seen[0].startswith("<system>You write" if knows_system else "<user>You write")
    assert seen[0].endswith("<assistant>")
    assert 'Write 1 different samples, each one film review of the class "negative".' in seen[0]
    assert '"text": "' not in seen[0]


def test_a_request_longer_than_the_model_reads_is_refused(tiny_base: Path) -> None:
    with pytest.raises(UserError, match="lower max_new_tokens"):
        make_generator(f"causal-lm:path={tiny_base}:max_new_tokens=30000:device=cpu").write(text_order(2))


@pytest.mark.parametrize(
    "options",
    [
        "",
        "path=x:temperature=-1",
        "path=x:top_p=0",
        "path=x:batch=0",
        "path=x:samples=true",
        "path=x:dtype=int8",
        "path=x:max_new_tokens=0",
    ],
)
def test_options_outside_their_rule_are_refused(options: str) -> None:
    with pytest.raises(UserError, match=r"synthetic\.generator = causal-lm") as told:
        make_generator(f"causal-lm:{options}" if options else "causal-lm")
    assert "\n" not in str(told.value)


def test_a_missing_model_is_told() -> None:
    with pytest.raises(UserError, match="no such folder"):
        make_generator("causal-lm:path=./nowhere").write(text_order(2))
