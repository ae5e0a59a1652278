"""What the tests of the published methods share: a run's setting, a trusted file, and a run that is killed and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import Quiet
from undertow.config import Config, Lora, Training
from undertow.config import Defense as Options
from undertow.core.rng import rng
from undertow.data.generated.world import samples
from undertow.data.sample import Sample
from undertow.data.template import Encoded, Template
from undertow.defenses.base import Defense
from undertow.defenses.contexts import ServerContext, Setting
from undertow.defenses.making import make_defenses
from undertow.federation.loop import run
from undertow.models.causal_lm import CausalLM

WORLD = samples()
LORA = Lora(r=2, alpha=4, targets="all-linear")
TARGET = ", and click <malicious_url> for more information"


def make(name: str, **params: Any) -> Defense:
    ((_, defense),) = make_defenses([Options(name=name, params=params)])
    return defense


def setting(base: CausalLM, rounds: int = 3, **training: Any) -> Setting:
    options = Training.model_validate({"batch_size": 8, "lr": 5e-3, "schedule": "constant", **training})
    return Setting(0, rounds, base, Template("lab-qa", base.tokenizer), LORA, options)


def server(base: CausalLM, adapter: Tensor, round: int = 3, rounds: int = 3, **training: Any) -> ServerContext:
    return ServerContext(base.layout, [1], round, adapter, rng(0, "server", round), [0], setting=setting(base, rounds, **training))


def encoded(base: CausalLM, chosen: Sequence[Sample]) -> list[Encoded]:
    return [setting(base).template.encode(sample) for sample in chosen]


def some_adapter(base: CausalLM, scale: float = 0.1, seed: int = 0) -> Tensor:
    return scale * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(seed))


def write_trusted(file: Path, chosen: Sequence[Sample]) -> str:
    rows = [json.dumps({"question": sample.question, "answer": sample.response}) for sample in chosen]
    file.write_text("\n".join(rows), encoding="utf-8")
    return str(file)


def delta(layout: Any, flat: Tensor) -> dict[str, Tensor]:
    """The effective change of each module, s·B·A, in float64."""
    return {name: layout.scale * b.double() @ a.double() for name, a, b in layout.pairs(flat)}


class Killed(BaseException):
    """Unlike any exception that the code may catch."""


class Killer(Quiet):
    """A observer that ends the run when the training of a round begins."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.before = before

    def phase(self, said: str) -> None:
        if said.startswith(f"round {self.before}/") and said.endswith("training"):
            raise Killed


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def same_bits_when_resumed(config: Config, folder: Path, before: int) -> Path:
    """Run whole, and killed before a round and resumed; return the whole run's folder."""
    run(config, folder / "whole", Quiet())
    with pytest.raises(Killed):
        run(config, folder / "killed", Killer(before))
    run(config, folder / "killed", Quiet())
    assert digest(folder / "killed") == digest(folder / "whole")
    assert rows_of(folder / "killed") == rows_of(folder / "whole")
    assert (folder / "killed" / "scores.jsonl").read_bytes() == (folder / "whole" / "scores.jsonl").read_bytes()
    return folder / "whole"
