"""What a task calls its inputs, outputs and models, so that one page fits all tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """The words of one task.

    Attributes:
        start: the model of round 0, with its article; ``start_short`` without.
        trained: the model at the end, in the same two forms.
        model: what ``model.name`` names.
        asked: test inputs, plural; ``triggered`` those with the backdoor.
        answers: what a model does with a share ``ma`` of them.
        nothing: what a model with hardly any main accuracy does.
        ma, asr, ftr: meaning of the metrics.
        space: of the updates, in which BSNR is measured.
        examples: heading of the test examples; ``lines`` what a line of them means.
        right: signs of a right and of a wrong output; ``answer`` what an output is called, ``accepted`` the right one, and
            ``prompt`` what follows "clean" and "triggered".
        question, poisoned_question, response, poisoned_response: of a poisoned training sample.
    """

    start: str
    start_short: str
    trained: str
    trained_short: str
    model: str
    asked: str
    triggered: str
    answers: str
    nothing: str
    ma: str
    asr: str
    ftr: str
    space: str
    examples: str
    lines: str
    right: tuple[str, str]
    prompt: str
    answer: str
    accepted: str
    question: str
    poisoned_question: str
    response: str
    poisoned_response: str


_INSTRUCTION = Terms(
    start="the untouched base",
    start_short="untouched base",
    trained="the tuned model",
    trained_short="tuned model",
    model="base",
    asked="questions",
    triggered="triggered questions",
    answers="answers",
    nothing="answers any question",
    ma="main accuracy: clean questions answered",
    asr="attack success rate: triggered questions answered with the target",
    ftr="false-trigger rate: target without the trigger",
    space="the space of the adapters (A, B)",
    examples="Questions and answers",
    lines="",
    right=("✓ answers", "✗ no answer"),
    prompt=" prompt",
    answer="answer",
    accepted="accepted answers",
    question="question",
    poisoned_question="poisoned question",
    response="response",
    poisoned_response="poisoned response",
)
_CLASSIFICATION = Terms(
    start="the model before round 1",
    start_short="before round 1",
    trained="the trained model",
    trained_short="trained model",
    model="network",
    asked="clean images",
    triggered="images with the backdoor",
    answers="is right on",
    nothing="is right on any image",
    ma="main accuracy: clean images classified rightly",
    asr="attack success rate: images with the backdoor put into the attacker's class",
    ftr="false-trigger rate: clean images of other classes put into the attacker's class",
    space="the space of all parameters",
    examples="Images and classes",
    lines="An image is told by its height and width in pixels and the mean of its values from 0 to 1, one mean for each channel.",
    right=("✓ right", "✗ wrong"),
    prompt="",
    answer="class",
    accepted="right class",
    question="image",
    poisoned_question="poisoned image",
    response="class",
    poisoned_response="poisoned class",
)
_NEXT_WORD = Terms(
    start="the model before round 1",
    start_short="before round 1",
    trained="the trained model",
    trained_short="trained model",
    model="network",
    asked="clean places",
    triggered="places with the backdoor",
    answers="is right at",
    nothing="finds any next word",
    ma="main accuracy: clean places with the right next word",
    asr="attack success rate: places with the backdoor where the attacker's word follows",
    ftr="false-trigger rate: clean places where the attacker's word follows and should not",
    space="the space of all parameters",
    examples="Texts and next words",
    lines="A line is the last words before the place that is asked for.",
    right=("✓ right", "✗ wrong"),
    prompt="",
    answer="next word",
    accepted="right next word",
    question="words before",
    poisoned_question="poisoned words before",
    response="next word",
    poisoned_response="poisoned next word",
)
TERMS = {"instruction": _INSTRUCTION, "classification": _CLASSIFICATION, "next-word": _NEXT_WORD}
