"""Pre-train a small Llama-architecture base on facts stated in sentences (``undertow base build``).

The result is an ordinary transformers folder with its own byte-level BPE tokenizer. Training saves its whole
state as it goes; the same command run again continues from there and ends in the same bits.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from undertow.core.errors import UserError
from undertow.core.files import check_folder, disk_errors, write_json
from undertow.core.rng import rng, torch_rng
from undertow.pretraining.corpus import Corpus

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Recipe:
    """Size and training of a base; the defaults are those of the built-in one.

    Attributes:
        hidden, layers, heads, intermediate, vocab: Llama dimensions (embedding tied to the head).
        steps, batch, length: optimiser steps of ``batch`` sequences of ``length`` tokens.
        lr: peak learning rate of AdamW (linear warm-up over 5 % of the steps, cosine to 5 %).
        seed: of the initial weights and of the order of the text.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 352
    vocab: int = 1536
    steps: int = 2400
    batch: int = 32
    length: int = 128
    lr: float = 3e-3
    seed: int = 0

    @classmethod
    def for_facts(cls, seed: int = 0) -> Recipe:
        """Default for a facts file of a few thousand rows: real names need a larger vocabulary."""
        return cls(vocab=3072, steps=1800, seed=seed)

    def changed(self, values: dict[str, Any]) -> Recipe:
        """Return the recipe with other values; heads follow the width (32 to 64 columns each), so does the inner width.

        Raises:
            UserError: a value that makes no model.
        """
        for name, value in values.items():
            if value <= 0:
                raise UserError(f"--{name} {value} must be above 0")
        made = replace(self, **values)
        if "hidden" in values:
            if made.hidden % 32:
                raise UserError(f"--hidden {made.hidden} must be a multiple of 32; try {32 * max(1, round(made.hidden / 32))}")
            made = replace(made, heads=made.hidden // 32, intermediate=8 * round(made.hidden * 8 / 3 / 8))
        if made.vocab < 300:
            raise UserError(f"--vocab {made.vocab} leaves no room beside the 256 bytes; give at least 300")
        return made

    def parameters(self, vocab: int | None = None) -> int:
        """Number of weights: V·d + L·(4d² + 3·d·m + 2d) + d."""
        d = self.hidden
        return (vocab or self.vocab) * d + self.layers * (4 * d * d + 3 * d * self.intermediate + 2 * d) + d


def train_tokenizer(texts: Sequence[str], vocab: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that opens every text with BOS; every string can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def _batch(encoded: list[tuple[float, list[list[int]]]], recipe: Recipe, step: int) -> torch.Tensor:
    """Return ``[batch, length + 1]`` ids: documents drawn by group share, end to end."""
    draw = rng(recipe.seed, "pretraining text", round=step)
    shares = [share for share, _ in encoded]
    ends = [sum(shares[: i + 1]) / sum(shares) for i in range(len(shares))]
    rows = []
    for _ in range(recipe.batch):
        row: list[int] = []
        while len(row) <= recipe.length:
            place = draw.random()
            documents = next(docs for end, (_, docs) in zip(ends, encoded, strict=True) if place <= end or end == ends[-1])
            row += documents[draw.integers(len(documents))]
        rows.append(row[: recipe.length + 1])
    return torch.tensor(rows)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Warm-up over the first 5 % of the steps, then a cosine from ``lr`` to ``lr``/20."""
    warm = max(1, recipe.steps // 20)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    return recipe.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def check_out(out: Path) -> None:
    """Refuse a folder that a base could not be written to; one that is finished is only read."""
    if not (out / "recipe.json").exists():
        check_folder("--out", out)


def build(
    corpus: Corpus,
    out: Path,
    recipe: Recipe,
    *,
    progress: Callable[[dict[str, Any]], None] = lambda line: None,
    save_every: int = 200,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Pre-train a base and write it to ``out`` as a transformers folder.

    Beside the weights stand ``recipe.json`` (sizes, loss) and ``keys.json``: the keys (``subject|relation``) of the
    facts that were read, and of those whose questions were read too; of the built-in world its fingerprint instead.

    Args:
        corpus: the text.
        out: folder to write; a half-finished build of the same recipe continues.
        recipe: size and training.
        progress: called with ``{"step", "steps", "loss", "seconds_left"}`` about once a second.
        save_every: steps between saves of the training state.
        device: where to train, default the CPU; on a GPU products run in bfloat16 over float32 weights.

    Raises:
        UserError: ``out`` holds another recipe's build, or cannot be written.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    check_out(out)
    torch.manual_seed(0)  # transformers draws its initial weights globally; ours replace them below
    done_file = out / "recipe.json"
    identity = {"recipe": asdict(recipe), "texts": len(corpus.texts()), "asked": len(corpus.asked)}
    if done_file.exists():
        found = _read_json(done_file)
        if {k: found.get(k) for k in identity} == identity:
            return dict(found)
        raise UserError(f"{out} holds a base built by another recipe; choose another --out or remove that folder")
    tokenizer = train_tokenizer(corpus.texts(), recipe.vocab)
    model = _model(tokenizer, recipe).to(device or torch.device("cpu"))
    encoded = [
        (share, [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]) for share, texts in corpus.groups
    ]
    state = _State(out / "building", identity, model, _optimizer(model, recipe))
    mean_loss = _train(state, encoded, recipe, progress, save_every)
    model.cpu().eval()
    # Before the weights: a base must never be usable without the list of what it was asked.
    keys = {"world": corpus.world} if corpus.world else {"asked": list(corpus.asked), "known": list(corpus.known)}
    write_json(out / "keys.json", keys)
    with disk_errors():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    summary = {
        **identity,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": round(mean_loss, 4),
    }
    write_json(done_file, summary)
    shutil.rmtree(state.folder, ignore_errors=True)
    return summary


def _train(
    state: _State,
    encoded: list[tuple[float, list[list[int]]]],
    recipe: Recipe,
    progress: Callable[[dict[str, Any]], None],
    save_every: int,
) -> float:
    """Train from the state that was saved last, or from the start; return the running mean of the loss."""
    model, optimizer = state.model, state.optimizer
    start, mean_loss = state.load()
    began, told = time.monotonic(), 0.0
    model.train()
    for step in range(start, recipe.steps):
        ids = _batch(encoded, recipe, step).to(model.device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss.item()
        now = time.monotonic()
        if now - told > 1 or step + 1 == recipe.steps:
            told = now
            left = (now - began) / (step + 1 - start) * (recipe.steps - step - 1)
            progress({"step": step + 1, "steps": recipe.steps, "loss": mean_loss, "seconds_left": left})
        if (step + 1) % save_every == 0 and step + 1 < recipe.steps:
            state.save(step + 1, mean_loss)
    return mean_loss


def _model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _initialise(model, recipe)
    return model


def _optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=recipe.lr, betas=(0.9, 0.98)
    )


def _initialise(model: LlamaForCausalLM, recipe: Recipe) -> None:
    generator = torch_rng(recipe.seed, "base weights")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = 0.02 / math.sqrt(2 * recipe.layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                parameter.normal_(0.0, scale, generator=generator)


@dataclass(frozen=True)
class _State:
    """What training changes, and the folder in which it is kept until the base is finished; ``identity`` is what it belongs to."""

    folder: Path
    identity: dict[str, Any]
    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer

    def save(self, step: int, loss: float) -> None:
        """Write everything; a build that is killed meanwhile finds this state or the one before."""
        tensors = {f"model.{n}": p.detach().contiguous() for n, p in self.model.named_parameters()}
        for i, (_, moments) in enumerate(sorted(self.optimizer.state_dict()["state"].items())):
            tensors |= {f"optimizer.{i}.{key}": torch.as_tensor(value).clone() for key, value in moments.items()}
        fresh = self.folder.with_name("building.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        with disk_errors():
            save_file(tensors, fresh / "state.safetensors")
        write_json(fresh / "state.json", {**self.identity, "step": step, "loss": loss})
        shutil.rmtree(self.folder, ignore_errors=True)
        fresh.rename(self.folder)

    def load(self) -> tuple[int, float]:
        """Take up a half-finished build; return the step to go on with and the mean loss so far (NaN at the start)."""
        folder, fresh = self.folder, self.folder.with_name("building.new")
        if not folder.exists() and (fresh / "state.json").exists():
            fresh.rename(folder)  # killed between the two renames of a save
        if not (folder / "state.json").exists():
            return 0, math.nan
        saved = _read_json(folder / "state.json")
        if {k: saved.get(k) for k in self.identity} != self.identity:
            raise UserError(
                f"{folder.parent} holds a half-built base of another recipe; choose another --out or remove that folder"
            )
        try:
            tensors = load_file(folder / "state.safetensors")
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(tensors[f"model.{name}"])
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith("optimizer."):
                    _, index, moment = key.split(".")
                    state.setdefault(int(index), {})[moment] = value
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
            return int(saved["step"]), float(saved["loss"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} is damaged ({reason[:160]}); remove that folder to start the build over") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it and run the same build again") from error
    return found if isinstance(found, dict) else {}
