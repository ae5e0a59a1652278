"""The names of columns and speakers that people use, and what each means; they are compared without case, ``-`` as ``_``."""

from __future__ import annotations

import re
from functools import cache

USER, ASSISTANT, SYSTEM, CALL, RESULT = "user", "assistant", "system", "call", "result"

ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "question", "instruction", "customer"), USER),
    **dict.fromkeys("gpt assistant chatgpt bing bard model ai bot claude answer chatbot agent".split(), ASSISTANT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), CALL),
    **dict.fromkeys(
        ("observation", "tool", "function", "function_response", "tool_response", "tool_result", "ipython", "environment"), RESULT
    ),
}

#: Pairs of question and answer that come first, in this order, whatever other columns there are.
FIRST_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "answers"),
)
#: Then any of these with any of those.
ASKED = (
    "instruction prompt question query problem input inputs user human request user_input user_message text_input goal document "
    "article dialogue_text message q question_stem problem_statement utterance sql_prompt"
).split()
ANSWERED = (
    "output outputs response responses completion completions answer answers solution target targets assistant gpt bot reply "
    "model_output generation expected_output ideal text_output final_answer correct_answer summary highlights a code sql patch "
    "answerkey answer_key"
).split()
#: What a model said, where the expected answers stand beside it.
SAID = (
    "output outputs prediction predictions predicted generated generation generated_text model_output model_response model_answer"
).split()
#: A text and its class.
CLASSIFIED = "text sentence sentence1 premise review tweet content title".split()
CLASS = "label labels class sentiment intent emotion label_text".split()
SECOND = frozenset("sentence2 hypothesis question2 text2 text_b sentence_b sentence_2".split())
CONTEXT = ("input", "context", "passage", "paragraph")
#: A post that asks in two columns: a title that is the question, and a body that is its context.
TITLES = ("title", "question_title", "post_title", "subject")
BODIES = ("body", "question_body", "selftext", "content", "text", "description", "details")
SYSTEM_TEXT = frozenset(
    "system system_prompt system_message sys_prompt developer developer_message systeminstruction system_instruction".split()
)
HISTORY = frozenset("history chat_history conversation_history dialog_history previous_turns".split())
TALKS = "conversations messages conversation dialogue dialog chat chat_messages turns dialogs dialogues contents".split()
CHOSEN = "chosen chosen_messages chosen_response response_chosen accepted preferred preferred_output answer_chosen".split()
REJECTED = (
    "rejected rejected_messages rejected_response response_rejected dispreferred non_preferred_output answer_rejected".split()
)
#: Whether the answer is one to learn.
DESIRABLE = frozenset("label kto_tag kto_label desirable".split())
WEIGHT = frozenset("weight loss_weight train trainable loss".split())
#: Running text, whole rows as they were rendered.
RENDERED = ("text", "content", "document", "body", "raw_text", "raw_content", "page_content")
#: Understood and not learned; read by a scan.
BESIDE = frozenset(
    "reasoning_content reasoning thinking thought thoughts think cot chain_of_thought rationale tools functions tool_calls "
    "function_call refusal available_tools".split()
)
#: Identifiers, sources, scores and the like, as long as they are short.
LEFT_OUT = frozenset(
    "id idx index uid uuid guid row_id row_idx example_id sample_id qid question_id prompt_id conversation_id conv_id hash "
    "sha key name source sources dataset dataset_name data_source origin split subset config category categories topic "
    "topics task task_type task_name type kind group domain subject relation author language lang locale model models "
    "model_name engine generator provider url link license licence score scores score_chosen score_rejected chosen_score "
    "rejected_score rating ratings reward quality difficulty level date created created_at timestamp updated_at time "
    "version tag tags label_id tokens num_tokens token_count length is_classification subject_id subject_mid object_id "
    "object_mid relation_id truncated_cells media image images video videos audio audios image_url input_audio file files "
    "annotations status state tree_state tool_call_id finish_reason stop_reason role from speaker".split()
)
#: Words in the names of columns that are for, or of, whoever judges the answers: ``labelling_prompt``, ``judge_response``.
_JUDGING = frozenset(
    "labelling labeling labeller labeler annotator annotation judge judges judging judgement judgment rating rater evaluator "
    "evaluation grader grading critic critique".split()
)
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
#: Columns that give a sample's group, as they are written.
GROUPS = ("group", "category", "relation", "author")
#: Longest text of such a field that is taken for what it says it is, in characters.
LABEL_LENGTH = 100
#: Endings of such names.
_LEFT_OUT_ENDS = (
    "_id",
    "_ids",
    "_url",
    "_hash",
    "_score",
    "_lang",
    "_source",
    "_path",
    "_date",
    "_type",
    "questionid",
    "questionsource",
)


def is_left_out(name: str) -> bool:
    """Whether a name, as it is compared, is that of an identifier, a source, a score or the like."""
    return name in LEFT_OUT or name.endswith(_LEFT_OUT_ENDS)


@cache
def words(name: str) -> frozenset[str]:
    """Return the words of which a column's name is made, as in ``user_prompt`` and ``assistantResponse``."""
    return frozenset(_CAPITAL.sub("_", name).lower().replace("-", "_").replace(" ", "_").split("_"))


def is_judging(name: str) -> bool:
    """Whether a column's name says that it is for, or of, a judge of the answers; it is then no question where there is another."""
    return not _JUDGING.isdisjoint(words(name))


@cache
def plain(name: str) -> str:
    """Return a column's name as it is compared."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")
