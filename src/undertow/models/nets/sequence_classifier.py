"""Any transformers model that classifies texts, pre-trained or from random values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undertow.core.errors import UserError
from undertow.data.tokenizer import load_tokenizer
from undertow.models.net import NETS


class SequenceClassifier(nn.Module):
    """A transformers model fed with rows of :class:`undertow.data.text_codes.TextCodes`: token t is the number t + 1, 0 is padding.

    Attributes:
        config: the model's; a module that has one is trained one client at a time.
        alone: clients are never stacked, even where they are trained side by side.
    """

    alone = True

    def __init__(self, model: nn.Module, pad: int) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self._pad = pad

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``[n, outputs]`` for rows int64 ``[n, length]``."""
        real = inputs != 0
        tokens = torch.where(real, inputs - 1, self._pad)
        # A row without any token, as batches are filled up with, still has one place to look at.
        first = torch.arange(inputs.shape[1], device=inputs.device) == 0
        logits: Tensor = self.model(input_ids=tokens, attention_mask=(real | first).long()).logits
        return logits


@NETS.register("sequence-classifier", source="ours; AutoModelForSequenceClassification of Hugging Face transformers")
def sequence_classifier(
    inputs: tuple[int, ...], outputs: int, ids: int, path: str = "", frozen: bool = False, scratch: bool = False
) -> nn.Module:
    """A transformers model with a classification head, such as DistilBERT, in float32 and without dropout.

    A checkpoint without a head, or with one for another number of classes, gets a new one with random values.

    Args:
        inputs: shape of one row, (length,).
        outputs: number of classes.
        ids: how many numbers a row can hold, 0 = padding among them.
        path: a transformers folder or a hub id; the data need its tokenizer, ``tokenizer=`` in ``data.name``.
        frozen: train the head alone.
        scratch: random values in place of the checkpoint's; only config.json is read, and any numbers will do that fit in.

    Raises:
        ValueError: no path, another option outside its rule, or rows of other numbers or longer than the model can read.
        UserError: no such model, or one that transformers cannot load as a classifier.
    """
    if not isinstance(path, str) or not path:
        raise ValueError("path is not set; give a transformers folder or a hub id, such as path=distilbert-base-uncased")
    for name, value in (("frozen", frozen), ("scratch", scratch)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} = {value!r} is neither true nor false")
    model = _load(path, outputs, scratch)
    config = model.config
    words = int(model.get_input_embeddings().weight.shape[0])
    if ids - 1 > words or (not scratch and ids - 1 != len(load_tokenizer(path, ends=False))):
        raise ValueError(f"it reads {words} tokens and the data have {ids - 1} others; add tokenizer={path} to data.name")
    if getattr(config, "pad_token_id", None) is None:  # language models, which look for the last token that is none
        config.pad_token_id = end if isinstance(end := getattr(config, "eos_token_id", None), int) else 0
    if frozen:
        model.base_model.requires_grad_(False)
    made = SequenceClassifier(model, int(config.pad_token_id))
    try:
        with torch.no_grad():
            made(torch.ones(1, inputs[0], dtype=torch.int64))
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"it cannot read {inputs[0]} tokens; lower length in data.name") from error
    return made


def _load(path: str, outputs: int, scratch: bool) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    place = Path(path).expanduser()
    if not place.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"network 'sequence-classifier': path = {path}: no such folder; give a transformers folder or a hub id")
    local = place.is_dir()
    name = str(place) if local else path
    logging.set_verbosity_error()  # that a head is new is what this network is for
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False, num_labels=outputs)
        options = {"attn_implementation": "eager", "dtype": torch.float32}
        if scratch:
            return AutoModelForSequenceClassification.from_config(config, **options)
        return AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            local_files_only=local,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **options,
        )
    except Exception as error:  # whatever transformers, safetensors and the hub raise for what is missing or damaged
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"network 'sequence-classifier': path = {path} cannot be loaded as a classifier of texts: {why}; "
            "give a transformers folder or a hub id"
        ) from error
