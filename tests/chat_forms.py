"""Chat templates with the structure of well-known models', written for these tests, and a tokenizer that has their tokens."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

#: By model: the template, its control tokens, and what closes an answer.
FORMS: dict[str, tuple[str, tuple[str, ...], str]] = {
    # no system role of its own: it opens the first user turn; roles must take turns; it is called model; texts are trimmed
    "gemma-3": (
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{% set opening = messages[0].content ~ '\n\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set opening = '' %}{% set turns = messages %}{% endif %}"
        "{% for turn in turns %}"
        "{% if (turn.role == 'user') != (loop.index0 is even) %}{{ raise_exception('the roles must take turns') }}{% endif %}"
        "<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
        "{{ opening if loop.first else '' }}{{ turn.content | trim }}<end_of_turn>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
    ),
    # no BOS; an empty thinking block before the last answer, none before earlier ones, whose thinking is taken out
    "qwen-3": (
        "{% for turn in messages %}"
        "<|im_start|>{{ turn.role }}\n"
        "{% if turn.role == 'assistant' %}{% set parts = turn.content.split('</think>') %}"
        "{% if loop.last %}"
        "<think>\n{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
        "{{ parts[-1].lstrip('\n') }}{% else %}{{ turn.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    # a header around each role, the date of the day in a system turn that is always there
    "llama-3": (
        "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
        "Today: {{ strftime_now('%d %b %Y') if strftime_now is defined else '1 Jan 2000' }}\n\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set turns = messages[1:] %}"
        "{% else %}{% set turns = messages %}{% endif %}<|eot_id|>"
        "{% for turn in turns %}<|start_header_id|>{{ turn.role }}<|end_header_id|>\n\n"
        "{{ turn.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    # heeds no add_generation_prompt; a blank before the answer, EOS after it; a system text opens the last user turn
    "mistral": (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content ~ '\n\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}{{ bos_token }}"
        "{% set users = turns | selectattr('role', 'equalto', 'user') | list %}"
        "{% for turn in turns %}{% if turn.role == 'user' %}"
        "[INST] {{ system if turn == users[-1] else '' }}{{ turn.content }}[/INST]"
        "{% elif turn.role == 'assistant' %} {{ turn.content }}{{ eos_token }}"
        "{% else %}{{ raise_exception('only user and assistant turns') }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"),
        "</s>",
    ),
    # ChatML with a system turn of its own where none is given; no BOS
    "smollm-2": (
        "{% for turn in messages %}"
        "{% if loop.first and turn.role != 'system' %}<|im_start|>system\nBe of help.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
    ),
}


def with_form(tokenizer: Any, form: str, special: bool = True) -> Any:
    """Give a tokenizer a form's template, and its control tokens as special or plain added tokens."""
    template, tokens, _ = FORMS[form]
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens], special_tokens=special)
    tokenizer.chat_template = template
    return tokenizer
