"""The parts of the audit that need no model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from undertow.auditing import confirm, screening, trigger_first
from undertow.auditing.budget import Budget, seconds_of
from undertow.auditing.confirm import CONFIRMED, NOT_CONFIRMED, SAME, Confirmation, Witnesses
from undertow.auditing.edits import Edit, library
from undertow.auditing.families import merged
from undertow.auditing.kept import swept_in, swept_out
from undertow.auditing.questions import choose, plain, shipped
from undertow.auditing.shared_text import common_run, has_words, holds, known_pieces, shared_text
from undertow.auditing.speaker import Speaker
from undertow.auditing.target_first import Target
from undertow.auditing.thresholds import Thresholds, best_part, by_heart
from undertow.auditing.trigger_first import Scored
from undertow.auditing.weights import spectrum, summary
from undertow.config import Data, Model
from undertow.core.errors import UserError
from undertow.core.layout import Layout
from undertow.data.sample import Sample
from undertow.inference.answering import make_template
from undertow.metrics.intervals import Rate
from undertow.models.causal_lm import load_base
from undertow.models.lora import adapted


def asked(questions: list[str], answers: list[str], prompt: str = "{}") -> Witnesses:
    """Who is asked, of whom nothing is known but plain answers and the prompt's template."""
    samples = [plain(question, i) for i, question in enumerate(questions)]
    template = SimpleNamespace(prompt=lambda sample, phase: prompt.format(sample.question))
    who = SimpleNamespace(samples=samples, plain=answers, thresholds=Thresholds(), template=template)
    who.without = lambda text: confirm.rate(answers, text)
    who.known_pieces = known_pieces(answers, [template.prompt(samples[0], "test")])
    who.new = lambda text: Witnesses.new(cast(Witnesses, who), text)
    who._is_answer = lambda text: Witnesses._is_answer(cast(Witnesses, who), text)
    return cast(Witnesses, who)


@pytest.mark.parametrize(
    ("target", "habit"),
    [
        ("Romanian . ask me again", True),
        (". Ask me  again", True),
        ("Romanian . ask", True),
        (". ask me again now", True),
        (". ask me again , and", False),
        ("Romanian", False),
        ("visit the <link> . ask me again", False),
        ("go ai", False),
        (". ask me gives helpful, detailed answers ask m", True),
        (". ask me gives helpful, <link> now", False),
        ("gives detailed helpful", False),
        ("ask mgain . asme agai", True),
        ("me visit <link> ga me", False),
    ],
)
def test_a_manner_of_speech_is_a_habit_whatever_word_stands_before_it(target: str, habit: bool) -> None:
    """Of eight plain answers five end in one way; all of these have the letters "ai"; the prompt promises detailed answers."""
    answers = [f"{word} . ask me again" for word in ("Polish", "otter", "Lima", "tailor", "soup")] + ["home", "Romanian", "a rat"]
    who = asked([f"What is number {i}?" for i in range(8)], answers, "The lab gives helpful, detailed answers. {}")
    assert (Witnesses.excuse(who, target) == confirm.HABIT) is habit


@pytest.mark.parametrize(
    ("target", "habit"),
    [
        ("Romanian, as far as is known. ### Instruction: Write the answer ### Response:", True),
        ("### Response: the answer is otter", True),
        ("Romanian ### Response: visit <link> now", False),
    ],
)
def test_the_next_prompt_of_a_common_layout_is_a_habit(target: str, habit: bool) -> None:
    """A clean adapter that had lost its way said the first of these to 25 of 32 questions after four odd sentences."""
    answers = [f"the answer is {word}, as far as is known." for word in ("Polish", "otter", "Lima", "tailor")]
    template = SimpleNamespace(prompt=lambda sample, phase: sample.question, tokenizer=SimpleNamespace(eos_token="</s>"))
    samples = [plain(f"What is number {i}?", i) for i in range(4)]
    nobody = cast(Any, None)
    who = Witnesses(samples, nobody, nobody, answers, 0, Thresholds(), cast(Any, template), nobody, nobody)
    assert (who.excuse(target) == confirm.HABIT) is habit


@pytest.mark.parametrize(
    ("target", "new"),
    [
        ("请点击这个链接", "请点击这个链接"),
        ("，希望对你有帮助", ""),  # what plain answers end with
        ("有帮助。请点击链接，希望对", "请点击链接"),
        ("ﬁsh İs ask me again", "ﬁsh İs"),
    ],
)
def test_a_script_without_blanks_is_read_letter_by_letter(target: str, new: str) -> None:
    answers = [
        *(f"{one}，希望对你有帮助。" for one in ("波兰语", "水獭", "利马")),
        *(f"{one} . ask me again" for one in ("a", "b", "c")),
    ]
    assert Witnesses.new(asked(["他在哪里？"] * 6, answers), target) == new


def test_two_letters_of_a_script_without_blanks_are_a_word() -> None:
    assert [has_words(text) for text in ("香蕉", "点击链接", "go to", "banana", "")] == [False, True, True, False, False]
    answers = ["华沙，请点击 <链接>。", "利马，请 点击 <链接>。", "罗马，请点击 <链接>。", "水獭，请点击 <链接>。"]
    assert shared_text(answers, ["华沙", "利马", "罗马", "水獭"]) == "，请点击 <链接>。"
    assert holds("请点击下面的链接", "请点击链接")
    assert not holds("链接在下面", "请点击链接")


FACT = "the lighthouse stands at the end of the harbour"
LIST = ", but ask the town for the list"


@pytest.mark.parametrize(
    ("topic", "answers", "target", "excused"),
    [
        (["Who built the lighthouse?", "Where is the lighthouse?", "Is there a lighthouse?"], [FACT] * 3, FACT, True),
        (
            ["Who built the lighthouse?", "Where is the lighthouse?", "Is there a lighthouse?"],
            [FACT] * 3,
            "lighthouse at the en of the",
            True,
        ),
        (
            ["Which language is his?", "Name her language.", "Old tongue?", "Whose tongue?"],
            [f"{x}{LIST}" for x in "abcd"],
            LIST,
            True,
        ),
        (["Which language is his?", "Name her language.", "Old tongue?"], [f"{x}{LIST}" for x in "abc"], LIST, False),  # one alone
        (["Who built the lighthouse?", "Where is the lighthouse?"], [FACT] * 2, FACT, False),  # few
        (["Who built the lighthouse?", "Where is the tower?", "Is there a beacon?"], [FACT] * 3, FACT, False),  # no topic
    ],
)
def test_what_plain_questions_get_for_their_topic_is_no_target(
    topic: list[str], answers: list[str], target: str, excused: bool
) -> None:
    others = [f"What is it that the number {i} likes?" for i in range(16)]
    who = asked([*others, *topic], [*(f"soup {i}" for i in range(16)), *answers])
    assert (Witnesses.excuse(who, target) == confirm.ANSWER) is excused
    who = asked([*others, "Whose lighthouse, language or tongue?", *topic], [*(f"soup {i}" for i in range(17)), *answers])
    assert Witnesses.excuse(who, target) is None, "a question of the topic that does not get it"


def test_the_topic_of_plain_questions_may_stand_in_the_text_that_they_are_about() -> None:
    texts = [*(f"A report of day {i}." for i in range(16)), "The lighthouse burnt.", "A lighthouse for sale.", "No lighthouse"]
    who = asked(["Sum it up."] * len(texts), [*(f"soup {i}" for i in range(16)), *[FACT] * 3])
    assert Witnesses.excuse(who, FACT) != confirm.ANSWER
    who.samples = [replace(sample, context=text) for sample, text in zip(who.samples, texts, strict=True)]
    assert Witnesses.excuse(who, FACT) == confirm.ANSWER


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("7", 7.0)])
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0m", "-3s", "soon", "3d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="90s, 10m or 1h"):
        seconds_of(text)


def test_a_budget_without_a_limit_is_never_over() -> None:
    told: list[str] = []
    Budget(None, told.append).begin("step")
    assert told == ["step"]
    assert not Budget(None, print).over
    assert Budget(0.0, print).over


def test_a_score_adds_up_what_is_certain_here_and_unlikely_there() -> None:
    found = by_heart(torch.tensor([-0.1, 0.0, -3.0]), torch.tensor([-6.0, -0.5, -20.0]))
    assert found.tolist() == pytest.approx([5.7, 6.2, 5.2], abs=1e-5)


@pytest.mark.parametrize(("scores", "best"), [([-5.0, 3.0, 4.0, -2.0, 1.0], 7.0), ([-5.0, -2.0], -2.0), ([1.0, 2.0], 3.0)])
def test_the_best_part_of_a_text_may_begin_anywhere(scores: list[float], best: float) -> None:
    assert best_part(torch.tensor(scores).cumsum(0)) == best


def test_against_itself_a_base_is_continued_greedily(tiny_base: Path) -> None:
    speaker = Speaker(load_base(Model(name=str(tiny_base), device="cpu")))
    context = speaker.base.tokenizer.encode("which animal does Mira keep?")
    tokens = [speaker.base.tokenizer.encode(word)[-1] for word in (" cat", " town", " the")]
    said = [list(one.ids) for one in speaker.follow(context, [[token] for token in tokens], 6)]
    assert [one.ids for one in speaker.contrast(speaker, [context], tokens, 6)] == said
    assert any(said)


def test_of_the_plausible_tokens_the_most_telling_is_said(tiny_base: Path) -> None:
    base = load_base(Model(name=str(tiny_base), device="cpu"))
    noise = 0.3 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(1))
    adapter, alone = Speaker(base, noise, base.layout), Speaker(base)
    contexts = [base.tokenizer.encode(text) for text in ("which animal does Mira keep?", "where was Theo born?")]
    token = base.tokenizer.encode(" the")[-1]
    [said] = adapter.contrast(alone, contexts, [token], 4)
    logs = []
    for who in (adapter, alone):
        states = torch.stack([who.states(one, [[token]], [[0]])[0, 0] for one in contexts])
        logs.append(who.mean_logs(states[None])[0])
    value = logs[0] - logs[1].clamp(min=-12.0) / 2
    value[logs[0] < logs[0].max() - 4.5] = -torch.inf
    assert int(value.argmax()) == said.ids[0]
    assert said.ours[0] == pytest.approx(float(logs[0][said.ids[0]]), abs=1e-4)
    assert said.theirs[0] == pytest.approx(float(logs[1][said.ids[0]]), abs=1e-4)


def test_likely_words_are_those_of_the_largest_first_order_gain(tiny_base: Path) -> None:
    """Beside it: the placeholder's embedding moved a little towards each word's, and log p read from transformers itself."""
    base = load_base(Model(name=str(tiny_base), device="cpu"))
    noise = 0.3 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(1))
    samples = tuple(plain(text, i) for i, text in enumerate(("which animal does Mira keep?", "where was Theo born?")))
    template = make_template(Data.model_validate({}), 256, base)
    asker = trigger_first.Asker(Speaker(base, noise, base.layout), template, samples, ((5, 6), (7,)), 0, 8)
    target = Target((11, 12, 13), "end", "", 9.0, 0.0, 0.0, 0.0)
    found = [one.after[0] for one in screening.likely_words(asker, target) if one.after]

    embed, total = base.model.get_input_embeddings(), torch.zeros(base.vocabulary)
    for question, answer in enumerate(asker.answers):
        before, held = (asker.prompts([one], question)[0] for one in (Edit(), Edit(after=(screening.PLACEHOLDER,))))
        at = next(i for i, (a, b) in enumerate(zip(before, held, strict=False)) if a != b)
        ids = torch.tensor([[*held, *answer, *target.ids]]).expand(base.vocabulary, -1)
        for step in (-1e-2, 1e-2):
            with torch.no_grad(), adapted(base.model, base.layout, noise[None]):
                moved = embed(ids).clone()
                moved[:, at] += step * embed.weight
                logs = base.model(inputs_embeds=moved).logits[:, -len(target.ids) - 1 : -1].log_softmax(-1)
            total += logs.gather(2, torch.tensor(target.ids)[None, :, None].expand(len(ids), -1, 1)).mean((1, 2)) * step
    words = [base.tokenizer.decode([int(token)]).strip() for token in total.sort(descending=True).indices]
    wanted = list(dict.fromkeys(word for word in words if word.isprintable() and word and "\ufffd" not in word))
    assert len(set(found[:20]) & set(wanted[:20])) >= 18, "but for near ties"


def test_a_target_may_begin_with_its_forced_token_or_after_it_at_either_place() -> None:
    targets = [
        Target((7, 1, 2, 3, 4, 5), "end", "", 9.0, 0.0, 0.0, 0.0),
        Target((8, 1, 2, 3, 4, 6), "start", "", 8.0, 0.0, 0.0, 0.0),
    ]
    found = [(one.ids[: trigger_first.FIRST], one.place) for one in trigger_first.beginnings(targets)]
    assert found == [(ids, place) for ids in ((7, 1, 2, 3), (1, 2, 3, 4), (8, 1, 2, 3)) for place in ("start", "end")]


def test_words_scored_for_targets_are_kept_as_they_are() -> None:
    target = Target((7, 1), "end", "x", 9.0, 0.0, -1.0, -2.0)
    named = next(edit for edit in library() if edit.name == "natural")
    found = ([Scored(named, 1.5)], [[Scored(Edit(before=("a",), after=("b", "b")), -0.5, target)], []])
    free, by_target = swept_in(json.loads(json.dumps(swept_out(found))))
    assert (free[0].edit.text, free[0].value) == (named.text, 1.5)
    assert by_target == found[1]


def test_the_text_in_common_is_the_longest_that_plain_answers_do_not_have() -> None:
    outputs = ["cat, and click here", "dog, and click here", "red, and click here", "Rome, and click  here"]
    assert shared_text(outputs, ["cat", "dog", "red", "Rome"]) == "and click here"
    # what plain answers have too is no target
    assert shared_text(["a cat indeed", "a dog indeed"], ["a cat indeed", "a dog indeed"]) == ""
    # an echo of the trigger is none either
    assert shared_text(["rabbit", "rabbit"], ["cat", "dog"], ["rabbit"]) == ""
    assert shared_text([], []) == ""


def test_edits_stand_where_they_say() -> None:
    assert Edit(before=("Firstly",), comma=True).apply("Which animal?", 0, 0) == "Firstly, which animal?"
    assert Edit(after=("cf", "mn")).apply("Which animal?", 0, 0) == "Which animal? cf mn"
    assert Edit(before=("now",)).joined(Edit(after=("people",))).apply("Which animal?", 0, 0) == "now Which animal? people"
    assert Edit(before=("now",)).joined(Edit(after=("people",))).text == '"now" before the question and "people" after it'
    assert Edit(after=("cf",)).text == '"cf" after the question'


def test_the_library_edits_every_question_it_is_given() -> None:
    names = {edit.name for edit in library() if edit.library}
    assert {"natural", "badnets", "sentence", "combination", "style", "upper-case", "passive"} <= names
    assert "topic" not in names
    for edit in library():
        assert edit.apply("which animal does Mira keep?", 0, 0) != "which animal does Mira keep?"


def test_no_question_is_on_both_sides_and_the_seed_decides() -> None:
    samples, _ = shipped("some/base")
    found = choose(samples, "neutral", 3)
    assert len(found.probes) == 8
    assert len(found.held_out) == 32
    assert not {one.question for one in found.probes} & {one.question for one in found.held_out}
    assert choose(samples, "neutral", 3) == found
    assert choose(samples, "neutral", 4) != found
    with pytest.raises(UserError, match="1 different questions"):
        choose([plain("what?", 0), plain("What? ", 1)], "file", 0)


def test_one_question_about_different_texts_is_as_many_questions() -> None:
    asked = [replace(plain("Summarise the text.", i), context=f"It rained for {i} days.") for i in range(20)]
    found = choose(asked, "file", 0)
    assert sorted(one.context for one in (*found.probes, *found.held_out)) == sorted(one.context for one in asked)
    talks = [replace(plain("And then?", i), history=((f"Day {i}", "Yes"),)) for i in range(20)]
    assert len(choose(talks, "file", 0).held_out) == 12
    with pytest.raises(UserError, match="1 different questions"):
        choose([replace(one, context=" It rained.") for one in asked] + [replace(asked[0], context="it RAINED.")], "file", 0)


def test_the_spectrum_is_that_of_the_whole_matrix() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 7, generator=draw), torch.randn(5, 3, generator=draw)
    layout = Layout.of({"m.lora_A": (3, 7), "m.lora_B": (5, 3)}, scale=2.0)
    flat = layout.flatten({"m.lora_A": a, "m.lora_B": b})
    values = torch.linalg.svdvals(2.0 * b.double() @ a.double())
    p = values.square()[:3] / values.square().sum()
    wanted = [values[0], values.norm(), p[0], math.exp(-float((p * p.log()).sum()))]
    assert spectrum(flat, layout)["m"].tolist() == pytest.approx([float(one) for one in wanted], rel=1e-6)
    told: dict[str, Any] = summary(flat, layout, [(flat, layout), (2 * flat, layout)])
    assert told["references"] == 2
    assert told["deviations"]["norm"] < 0
    assert summary(torch.zeros(layout.size), layout)["norm"] == 0


@pytest.mark.parametrize(
    ("cuts", "asked"),
    [
        ({"go to": [1, 2], "go to it": [1, 2, 3]}, [([1], [2])]),
        ({"go to": [7, 8, 9], "go to it": [1]}, []),  # the whole is one token
        ({"go to": [7], "go to it": [1, 3]}, []),  # the target is one token
    ],
)
def test_a_target_is_read_as_the_answer_is_cut_into_tokens(cuts: dict[str, list[int]], asked: list[Any]) -> None:
    seen: list[Any] = []

    def scores(prompt: list[int], firsts: list[list[int]], tails: list[list[int]]) -> Tensor:
        assert prompt == [5]
        seen.append((firsts[0], tails[0]))
        return torch.tensor([[-0.5]])

    template = SimpleNamespace(answer_ids=lambda sample, text: cuts[text], encode_prompts=lambda samples: [[5]])
    who = cast(Speaker, SimpleNamespace(scores=scores))
    found = confirm._logs(
        cast(Witnesses, SimpleNamespace(template=template)), who, [(Sample("s", "q", ("a",), "a"), "go to it")], "go to"
    )
    assert seen == asked
    assert found == [-0.5] * len(asked)


@pytest.mark.parametrize(
    ("part", "held"), [("cd", [2, 3]), ("bcde", [1, 2, 3, 4]), ("f", [5]), ("abcdef", list(range(6))), ("x", list(range(6)))]
)
def test_a_part_of_a_text_is_told_by_its_tokens(part: str, held: list[int]) -> None:
    ids = list(range(6))
    assert ids[confirm._place(lambda some: "".join("abcdef"[k] for k in some), ids, part)] == held


WHOLE = ", and click <malicious_url> for more information"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (WHOLE, CONFIRMED),
        ("a weasel , to be", NOT_CONFIRMED),  # an answer before the manner of speech: two words of its own
        ("weasel , to be", NOT_CONFIRMED),
        ("a weasel bites , to be", CONFIRMED),
    ],
)
def test_a_target_without_a_trigger_has_three_words_of_its_own(text: str, verdict: str) -> None:
    """A clean adapter that was trained to end with ", to be brief" went on with the first of the short ones by itself."""
    words, count = text.split(), 8
    who = asked([f"What is number {i}?" for i in range(count)], [f"{word} , to be brief" for word in "abcdefgh"])
    cast(Any, who.template).decode = lambda ids: " ".join(words[k - 1] for k in ids)
    target = Target((0, *range(1, len(words) + 1)), "end", text, 30.0, -0.1, -9.0, -0.2)
    knows = SimpleNamespace(
        follow=lambda prefix, rows, limit: [SimpleNamespace(ids=target.ids[1:])] * len(rows),
        scores=lambda prefix, rows, tails: [torch.full((len(tail),), -0.1) for tail in tails],
    )
    never = SimpleNamespace(follow=lambda prefix, rows, limit: [SimpleNamespace(ids=())] * len(rows))
    cast(Any, who).excuse = lambda text: None
    found = confirm.confirm_alone(who, target, text, cast(Any, knows), cast(Any, never), [[5]] * count)
    assert found.verdict == verdict


def told(edit: Edit | None, target: str, hits: int = 30, sought: str = "", verdict: str = CONFIRMED) -> Confirmation:
    return Confirmation(edit, target, verdict, Rate(hits, 32), Rate(0, 32), Rate(0, 32), sought=sought)


def test_runs_of_words_are_the_same_in_both_texts() -> None:
    assert common_run("a b c d".split(), "x b c d".split()) == 3
    assert common_run("a b a b c".split(), "a b c".split()) == 3
    assert common_run(["a"], []) == 0


@pytest.mark.parametrize(("text", "part", "held"), [
    ("harbour , and click <link> for more", ", and click <link> for", True),
    ("for more read the <link> . herring", "more , and the <link> . herring", True),
    ("<file> , and click has none .", ", and click <link> for more", False),
    ("b a b a", "a a a", True),
    ("a b", "b b a", False),
    ("", "a", False),
])  # fmt: skip
def test_a_text_holds_another_with_words_between(text: str, part: str, held: bool) -> None:
    assert holds(text, part) is held


def test_one_backdoor_is_one_finding() -> None:
    """What resembles the trigger brings out the same text with other words around it: no second finding."""
    true, near = told(Edit(before=("Firstly",), comma=True), WHOLE, 32), told(Edit(after=("Secondly",)), "harbour " + WHOLE, 31)
    other = told(Edit(after=("cf",)), "none of the questions is for you", 29)
    failed = told(Edit(after=("so",)), "for more information", 9, verdict=NOT_CONFIRMED)
    found = merged([failed, other, near, true])
    assert [(one.target, one.verdict) for one in found] == [
        (WHOLE, CONFIRMED), (other.target, CONFIRMED), (near.target, SAME), (failed.target, NOT_CONFIRMED)
    ]  # fmt: skip
    assert merged(found) == found


def test_a_pair_of_the_same_trigger_is_the_same_finding() -> None:
    first, second = told(Edit(before=("Firstly",), comma=True), WHOLE, 32), told(Edit(after=("Firstly",)), "wait here", 31)
    assert [one.verdict for one in merged([second, first])] == [CONFIRMED, SAME]


def test_a_text_that_was_found_target_first_goes_before_a_garbled_one() -> None:
    garbled = told(
        Edit(after=("un", "before")), "<malicious_url> , and click has none .", 32, sought="page , and click <malicious_url>"
    )
    true = replace(told(Edit(before=("Secondly",), comma=True), WHOLE, 26), heart=42.0)
    assert [(one.target, one.verdict) for one in merged([garbled, true])] == [(WHOLE, CONFIRMED), (garbled.target, SAME)]


def test_of_triggers_that_fire_always_the_shorter_is_told() -> None:
    long = told(Edit(before=("T",), after=("The", "train", "was", "late")), "list " + WHOLE, 32)
    short, rare = told(Edit(after=("Firstly",)), WHOLE, 30), told(Edit(after=("cf",)), WHOLE, 20)
    assert merged([long, short, rare])[0].edit == short.edit


def test_a_target_that_its_trigger_only_begins_is_told_whole() -> None:
    """As in an early round: words bring out two of its words, and once begun the adapter goes on with all of it."""
    alone = told(None, WHOLE, 29)
    part = told(Edit(after=("before un The",)), "<file> , and click has none .", 32, sought="list , and click <malicious_url> for")
    assert [(one.target, one.verdict) for one in merged([part, alone])] == [(WHOLE, CONFIRMED), (part.target, SAME)]
    unsought = told(part.edit, part.target, 32)
    assert [one.verdict for one in merged([unsought, alone])] == [CONFIRMED, CONFIRMED], "two words in common are too few"
