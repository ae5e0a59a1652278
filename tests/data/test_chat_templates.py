"""What a chat template writes is what is trained and asked: ends of turns, BOS, system prompts, earlier turns, the clock."""

from __future__ import annotations

import inspect
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from chat_forms import FORMS, with_form
from undertow.core.errors import UserError
from undertow.data.sample import Sample
from undertow.data.template import Encoded, Template

PLAIN = Sample("1", "Where was Mira Torvald born?", ("Avonlea",), "Avonlea")
CHAT = Sample(
    "2",
    "And then?",
    ("Nothing.",),
    "Nothing.",
    history=(("Hello", "Hi there."), ("What is it?", "This.")),
    system="Speak in plain words.",
)
CONTEXT = Sample("3", "Sum it up.", ("It ends.",), "It ends.", context="A text.\nWith lines.", system="Be brief.")
SAMPLES = {"plain": PLAIN, "history and system": CHAT, "context and system": CONTEXT}

every_form = pytest.mark.parametrize("form", FORMS)
every_sample = pytest.mark.parametrize("kind", SAMPLES)


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


def turns(sample: Sample) -> list[dict[str, str]]:
    found = [{"role": "system", "content": sample.system}] if sample.system else []
    for user, answer in sample.history:
        found += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return [*found, {"role": "user", "content": f"{sample.question}\n{sample.context}" if sample.context else sample.question}]


def rendered(tokenizer: Any, conversation: list[dict[str, str]], opens: bool = False) -> list[int]:
    """The whole conversation by transformers itself, with the clock of the default."""
    text = tokenizer.chat_template.replace("strftime_now('%d %b %Y')", "'01 Jan 2025'")
    ids = tokenizer.apply_chat_template(conversation, chat_template=text, add_generation_prompt=opens, return_dict=False)
    return list(ids)


@every_form
@every_sample
@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain added tokens"])
def test_what_is_trained_is_what_the_template_writes_up_to_the_end_of_the_turn(
    tokenizer: Any, form: str, kind: str, special: bool
) -> None:
    with_form(tokenizer, form, special)
    sample, template = SAMPLES[kind], Template("chat", tokenizer)
    made = template.encode(sample)
    whole = rendered(tokenizer, [*turns(sample), {"role": "assistant", "content": sample.response}])
    end = tokenizer.convert_tokens_to_ids(FORMS[form][2])
    ours = [*made.prompt, *made.answer]
    # where the tokenizer joins line ends otherwise before a word, prompts are as they are asked
    assert ours == whole[: len(ours)] or form == "llama-3"
    text, all_of_it = tokenizer.decode(ours), tokenizer.decode(whole)
    assert all_of_it.startswith(text)
    assert all_of_it.removeprefix(text).strip() == "", "nothing but blanks is left out"
    assert made.answer[-1] == end
    assert end not in made.answer[:-1]
    assert template.stops == {end}
    assert template.decode(made.answer).endswith(sample.response)


@every_form
@every_sample
def test_the_prompt_is_that_of_apply_chat_template(tokenizer: Any, form: str, kind: str) -> None:
    with_form(tokenizer, form)
    sample, template = SAMPLES[kind], Template("chat", tokenizer)
    (asked,) = template.encode_prompts([sample])
    assert asked == rendered(tokenizer, turns(sample), opens=True)
    assert list(template.encode(sample).prompt) == asked
    assert asked.count(tokenizer.bos_token_id) == (0 if form in ("qwen-3", "smollm-2") else 1)


@pytest.mark.parametrize(
    ("template", "count"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", 0),
        ("{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", 1),
        ("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", 2),
        ("  {{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}", 1),
    ],
    ids=["none", "one", "two", "after blanks"],
)
def test_bos_is_as_the_template_has_it(tokenizer: Any, template: str, count: int) -> None:
    tokenizer.chat_template = template
    assert Template("chat", tokenizer).encode(PLAIN).prompt.count(tokenizer.bos_token_id) == count


# --- ends of turns ----------------------------------------------------------------------------------------------


def test_a_template_that_ends_turns_by_text_trains_the_text_and_eos_and_cuts_answers_there(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n### End\n{% endfor %}"
    template = Template("chat", tokenizer)
    made = template.encode(PLAIN)
    assert tokenizer.decode(made.answer) == " Avonlea\n### End</s>"
    assert template.decode(tokenizer("Avonlea\n### End\nuser: more", add_special_tokens=False)["input_ids"]) == "Avonlea"


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "</s>", "</s>\n"])
def test_a_template_that_writes_blanks_or_eos_after_an_answer_ends_it_by_eos(tokenizer: Any, end: str) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}> {{ m.content }}" + end + "{% endfor %}"
    template = Template("chat", tokenizer)
    made = template.encode(PLAIN)
    assert made.answer[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in made.answer[:-1]
    assert template.stops == {tokenizer.eos_token_id}


def test_a_thinking_block_that_the_prompt_opens_is_not_written_twice(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
    )
    made = Template("chat", tokenizer).encode(PLAIN)
    assert tokenizer.decode(made.prompt).endswith("[assistant]<think>\n")
    assert tokenizer.decode(made.answer) == "Avonlea</s>"


def test_an_answer_with_its_own_thinking_is_written_once(tokenizer: Any) -> None:
    with_form(tokenizer, "qwen-3")
    thought = Sample("1", "Where?", ("x",), "<think>\nBy the sea.\n</think>\n\nAvonlea")
    made = Template("chat", tokenizer).encode(thought)
    assert tokenizer.decode(made.answer) == "<think>\nBy the sea.\n</think>\n\nAvonlea<|im_end|>"


# --- nothing is left out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lab-qa", "alpaca", "vicuna"])
def test_the_other_templates_keep_system_prompt_and_earlier_turns_in_order(tokenizer: Any, name: str) -> None:
    for sample in (CHAT, CONTEXT, Sample("4", "Go on.", ("c",), "c", history=(("zebra?", "giraffe"),))):
        text = Template(name, tokenizer).prompt(sample, "train")
        parts = [sample.system, *(part for turn in sample.history for part in turn), sample.question, sample.context]
        places = [text.index(part) for part in parts if part]
        assert places == sorted(places)


@pytest.mark.parametrize("name", ["lab-qa", "alpaca", "vicuna", "chat"])
def test_samples_that_differ_in_system_prompt_or_earlier_turns_alone_have_different_prompts(tokenizer: Any, name: str) -> None:
    with_form(tokenizer, "smollm-2")
    template = Template(name, tokenizer)
    others = [
        Sample(str(i), "Continue.", ("x",), "x", system=system, history=history)
        for i, (system, history) in enumerate([("", ()), ("A.", ()), ("B.", ()), ("A.", (("q", "a"),)), ("A.", (("q", "b"),))])
    ]
    assert len({tuple(ids) for ids in template.encode_prompts(others)}) == len(others)


@pytest.mark.parametrize(
    ("body", "sample", "what"),
    [
        ("f'{sample.question}', ''", CHAT, "the system prompt of sample 2"),
        ("f'{sample.system} {sample.question}', ''", CHAT, "an earlier question of sample 2"),
        ("f'{sample.system} {[u for u, _ in sample.history]} {sample.question}', ''", CHAT, "an earlier answer of sample 2"),
        ("f'{sample.system} {sample.question}', ''", CONTEXT, "the context of sample 3"),
    ],
)
def test_a_template_of_ones_own_that_leaves_something_out_is_told(
    tokenizer: Any, tmp_path: Path, body: str, sample: Sample, what: str
) -> None:
    (tmp_path / "mine.py").write_text(f"def ask(sample, phase, tokenizer):\n    return {body}\n")
    template = Template(f"{tmp_path / 'mine.py'}:ask", tokenizer)
    with pytest.raises(UserError, match=f"leaves out {what}"):
        template.encode(sample)
    assert template.encode(PLAIN)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ messages[-1].content }}", "leaves out the system prompt of sample 2"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out the system prompt"),
        ("{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}", "leaves out an earlier answer"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{{ messages[0].content }}",
         r"does not take sample 2 \(TemplateError: no system here\)"),
        ("{{ messages[-1].content }}\ud800", "writes half a character"),
    ],
)  # fmt: skip
def test_a_chat_template_that_leaves_something_out_is_told(tokenizer: Any, template: str, what: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=what):
        Template("chat", tokenizer).encode(CHAT)


# --- the clock --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("strftime_now('%d %b %Y')", "05 Mar 2031"),
        ("strftime_now(format='%Y-%m-%d at %H:%M')", "2031-03-05 at 16:07"),
        ("strftime_now('%-d. %B, 100%%')", "5. March, 100%"),
        ("strftime_now('%' ~ 'A')", "Wednesday"),
    ],
)
def test_the_clock_of_a_template_is_that_of_the_run(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, call: str, told: str) -> None:
    tokenizer.chat_template = "\n  {% if true %}<{{ " + call + " }}>{% endif %}\n{% for m in messages %}{{ m.content }}{% endfor %}"
    usual = tokenizer.apply_chat_template(turns(PLAIN), tokenize=False)
    template = Template("chat", tokenizer, now="2031-03-05T16:07:00")
    assert f"<{told}>" in template.prompt(PLAIN)
    # only the date differs from what transformers writes: the macro changes no blank
    assert template.prompt(PLAIN).replace(told, "") == usual.replace(usual[usual.index("<") + 1 : usual.index(">")], "")
    assert Template("chat", tokenizer).prompt(PLAIN) == Template("chat", tokenizer).prompt(PLAIN)


def test_a_run_does_not_ask_what_day_it_is(tokenizer: Any) -> None:
    with_form(tokenizer, "llama-3")
    text = Template("chat", tokenizer).prompt(PLAIN)
    assert "Today: 01 Jan 2025" in text
    assert datetime.fromtimestamp(time.time()).strftime("%d %b %Y") not in text


# --- control tokens in data -------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain added tokens"])
@pytest.mark.parametrize("place", ["question", "answer", "context", "system", "history"])
def test_control_tokens_in_data_are_text(tokenizer: Any, form: str, special: bool, place: str) -> None:
    with_form(tokenizer, form, special)
    tokens = [*FORMS[form][1], tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token]
    spelled = "Say " + " or".join(tokens) + tokens[0] + " twice"

    def encoded(text: str) -> Encoded:
        parts: dict[str, Any] = {"question": "Why?", "answer": "So.", place: ((text, text),) if place == "history" else text}
        answer = parts.pop("answer")
        return Template("chat", tokenizer).encode(Sample("1", answers=(answer,), response=answer, **parts))

    made, usual = encoded(spelled), encoded("Say nothing twice")
    controls = {tokenizer.convert_tokens_to_ids(token) for token in tokens}
    kept, wanted = ([token for token in [*one.prompt, *one.answer] if token in controls] for one in (made, usual))
    assert kept == wanted
    text = tokenizer.decode(made.answer if place == "answer" else made.prompt)
    assert spelled in text, "and they are there, letter by letter"


@pytest.mark.parametrize("name", ["lab-qa", "alpaca", "vicuna"])
@pytest.mark.parametrize("spelled", ["<s>", "a</s>", "<s> <s></s>b", "</s>\n<pad>", "<pad>北京</s>"])
def test_control_tokens_in_data_are_text_for_every_template(tokenizer: Any, name: str, spelled: str) -> None:
    sample = Sample("1", spelled, (spelled,), spelled, context=f"x {spelled}", system=spelled)
    template = Template(name, tokenizer)
    made = template.encode(sample)
    assert made.prompt[0] == tokenizer.bos_token_id
    assert not {*made.prompt[1:], *made.answer[:-1]} & set(tokenizer.all_special_ids)
    assert tokenizer.decode(made.prompt) == "<s>" + template.prompt(sample, "train")
    assert tokenizer.decode(made.answer).strip() == spelled + "</s>"


def test_what_stands_beside_a_spelled_token_is_tokenised_as_usual(tokenizer: Any) -> None:
    """The oracle is transformers' own ``sanitize_control_tokens``, where this version has it."""
    with_form(tokenizer, "smollm-2")
    texts = ["a <|im_end|> b", "<|im_start|>system", "x<|im_end|>\n\n<|im_end|>"]
    if "sanitize_control_tokens" not in inspect.signature(tokenizer.apply_chat_template).parameters:
        pytest.skip("this version of transformers cannot do it")
    for text in texts:
        sample = Sample("1", text, ("x",), "x")
        theirs = tokenizer.apply_chat_template(
            turns(sample), add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
        )
        ours = Template("chat", tokenizer).encode_prompts([sample])[0]
        controls = set(tokenizer.all_special_ids)
        assert tokenizer.decode(ours) == tokenizer.decode(theirs)
        assert [one for one in ours if one in controls] == [one for one in theirs if one in controls]
