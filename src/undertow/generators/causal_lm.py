"""A causal language model on this machine writes the synthetic texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import ValidationError

from undertow.config import Model
from undertow.core.errors import UserError
from undertow.core.rng import torch_rng
from undertow.core.rules import first_rule
from undertow.data.examples import Written
from undertow.data.sample import Sample
from undertow.data.template import Template
from undertow.generators._asking import Asked, Request, number, whole
from undertow.generators._sampling import sample
from undertow.generators.contract import GENERATORS, Order
from undertow.models.causal_lm import CausalLM, load_base


@GENERATORS.register("causal-lm", source="Li, Wu, Wang 2024, arXiv 2401.10375 (there GPT-4); sampling: Holtzman et al. 2020")
class CausalLmGenerator(Asked):
    """Any causal language model of transformers, asked for a few samples of a class at a time; it follows instructions as well as
    it can.

    A tokenizer with a chat template gets instructions and request as system and user message. Any other model goes on
    with a text that has both and the beginning of the first answer, ``{"label": "CLASS", "text": "``.

    Args:
        path: a transformers folder, or a hub id, which is downloaded unless the hub's cache has it.
        prompt: the request, with ``{label}``, ``{about}`` and ``{count}``, or a file with it.
        temperature: from 0 (always the likeliest token) to 10.
        top_p: mass of the likeliest tokens that are drawn from, above 0, at most 1.
        max_new_tokens: longest answer.
        samples: asked for at a time.
        batch: requests answered side by side.
        device: as ``model.device``.
        dtype: as ``model.dtype``.

    Raises:
        ValueError: an option outside its rule, or no path.
    """

    def __init__(
        self,
        path: str = "",
        prompt: str = "",
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        samples: int = 10,
        batch: int = 8,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        super().__init__("causal-lm", prompt, samples)
        if not path or not isinstance(path, str):
            raise ValueError("path is not set; give a transformers folder or a hub id, as in causal-lm:path=models/my-model")
        number("temperature", temperature, 0, 10)
        number("top_p", top_p, 0, 1, above=True)
        whole("max_new_tokens", max_new_tokens, 1, 32768)
        whole("batch", batch, 1, 1024)
        self.path, self.temperature, self.top_p = path, float(temperature), float(top_p)
        self.max_new_tokens, self.batch = max_new_tokens, batch
        try:
            self.options = Model.model_validate(
                {"name": path, "device": device, "dtype": dtype, "lora": {"r": 1, "alpha": 2, "targets": "all-linear"}}
            )
        except ValidationError as error:
            raise ValueError(first_rule(error)) from error
        self._base: CausalLM | None = None
        self._template: Template | None = None
        self._names: Sequence[str] = ()

    def write(self, order: Order) -> Written:
        """Load the model and ask it (:meth:`undertow.generators._asking.Asked.write`); its memory is free afterwards.

        Raises:
            UserError: no such model, requests and answers longer than it reads, or nothing that can be used.
        """
        self._base, self._names = load_base(self.options, tuned=False), order.names
        if getattr(self._base.tokenizer, "chat_template", None):
            rows = int(self._base.model.get_input_embeddings().weight.shape[0])
            self._template = Template("chat", self._base.tokenizer, sys.maxsize, vocabulary=rows)
            self._base = replace(self._base, stops=self._template.stops)
        try:
            return super().write(order)
        finally:
            self._base = self._template = None

    def answers(self, requests: Sequence[Request], seed: int, asked: int) -> Iterator[str]:
        """Yield the answer to each request, ``batch`` of them computed side by side, each with random numbers of its own."""
        base = self._base
        assert base is not None
        for start in range(0, len(requests), self.batch):
            chunk = requests[start : start + self.batch]
            begun = [self._beginning(request) for request in chunk]
            prompts = [self._tokens(request, begin) for request, begin in zip(chunk, begun, strict=True)]
            longest = max(map(len, prompts)) + self.max_new_tokens
            if base.positions and longest > base.positions:
                raise UserError(
                    f"synthetic.generator = causal-lm: request and answer take {longest} tokens and {self.path} reads "
                    f"{base.positions}; lower max_new_tokens and samples"
                )
            draws = [torch_rng(seed, "generator causal-lm", client=asked + start + i) for i in range(len(chunk))]
            made = sample(base, prompts, draws, temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)
            for begin, ids in zip(begun, made, strict=True):
                yield begin + str(base.tokenizer.decode(ids, skip_special_tokens=True))

    def _beginning(self, request: Request) -> str:
        """Return the part of the answer that stands in the prompt: none where the model knows turns."""
        return "" if self._template else f'{{"label": {json.dumps(self._names[request.label], ensure_ascii=False)}, "text": "'

    def _tokens(self, request: Request, begin: str) -> list[int]:
        assert self._base is not None
        if self._template is None:
            return list(self._base.tokenizer(f"{request.system}\n\n{request.user}\n\n{begin}").input_ids)
        asked = Sample("request", request.user, ("",), "", system=request.system)
        try:
            return self._template.nearest(asked)
        except UserError:  # some templates know no system message
            return self._template.nearest(replace(asked, question=f"{request.system}\n\n{request.user}", system=""))
