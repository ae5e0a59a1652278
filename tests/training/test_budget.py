"""Chunks and forecasts: what fits, what is recomputed, and that neither changes what is learned."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from undertow.config import Lora, Training
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM
from undertow.models.head import GivenLogits
from undertow.training import batched, budget, forecast
from undertow.training.local import Job

Load = Callable[..., CausalLM]


def jobs(count: int, samples: int = 6) -> list[Job]:
    return [Job(k, [Encoded((3, 4, 5 + k % 7, 6 + i % 5), (7, 8)) for i in range(samples)]) for k in range(count)]


def options(**changes: Any) -> Training:
    return Training.model_validate({"batch_size": 4, **changes})


@pytest.fixture
def base(load_tiny: Load) -> CausalLM:
    return load_tiny("llama")


@pytest.mark.parametrize(("clients", "chunk"), [(1, 1), (2, 1), (3, 2), (5, 3), (10, 5), (16, 8), (17, 6), (100, 8)])
def test_chunks_of_a_cpu_do_not_depend_on_its_threads(base: CausalLM, clients: int, chunk: int) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert budget.budget(base, options(), jobs(clients)).chunk == chunk
    finally:
        torch.set_num_threads(before)


def test_little_memory_means_small_chunks_and_in_the_end_recomputing(base: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = budget.budget(base, options(client_chunk=1), jobs(10))
    assert not plain.recompute
    each = budget.budget(base, options(client_chunk=2), jobs(10)).bytes - plain.bytes
    room = plain.bytes + int(2.5 * each)  # the logits' share is the same for any number of clients
    monkeypatch.setattr(budget, "total_bytes", lambda device: base.bytes + 2 * room)
    assert budget.budget(base, options(), jobs(10)).chunk == 3
    monkeypatch.setattr(budget, "total_bytes", lambda device: base.bytes + plain.bytes)
    small = budget.budget(base, options(), jobs(10))
    assert small.recompute
    assert small.chunk >= 1
    assert small.bytes // small.chunk < plain.bytes
    assert not budget.budget(base, options(recompute="off"), jobs(10)).recompute
    assert not budget.budget(replace(base, packed=None), options(recompute="on"), jobs(10)).recompute


def test_recomputing_and_threads_change_no_bit(base: CausalLM) -> None:
    adapter = 0.02 * torch.randn(base.layout.size, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    found = []
    try:
        for threads, recompute in ((1, "off"), (2, "off"), (1, "on")):
            torch.set_num_threads(threads)
            found.append(batched.train(base, Lora(), options(recompute=recompute), adapter, jobs(6), 0, 1).updates)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_interrupt_stops_the_other_chunks(base: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_begun = []
    real = batched.losses

    def losses(*args: Any, **named: Any) -> torch.Tensor:
        steps_begun.append(threading.get_ident())
        if len(steps_begun) == 3:
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(batched, "losses", losses)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            batched.train(base, Lora(), options(local_epochs=40), torch.zeros(base.layout.size), jobs(4), 0, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(steps_begun) < 40, "the chunk beside it does not train to its end (80 steps)"


def test_a_forecast_is_positive_and_speaks_in_one_line(base: CausalLM) -> None:
    one = forecast.forecast(base, options(client_chunk=2), jobs(4), 10)
    more = forecast.forecast(base, options(client_chunk=2), jobs(4, samples=600), 10)
    assert one.bytes > base.bytes
    assert 0 < one.seconds < more.seconds
    assert "for 10 rounds" in str(one)
    assert "\n" not in str(one)
    assert (
        str(forecast.Forecast(3 * 2**30, 7200, 100))
        == "predicted: about 3.0 GiB of memory; training takes 2.0 h a round, 200.0 h for 100 rounds"
    )


def test_logits_of_an_unknown_head_count_for_each_client(base: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.model.config, "vocab_size", 1_000_000)
    unknown = GivenLogits()
    bytes_of = {
        (head, chunk): budget.budget(replace(base, packed=None, head=head), options(client_chunk=chunk), jobs(2)).bytes
        for head in (base.head, unknown)
        for chunk in (1, 2)
    }
    logits = 4 * 6 * 1_000_000 * 4  # batch, positions, words, float32
    more = {head: bytes_of[head, 2] - bytes_of[head, 1] for head in (base.head, unknown)}
    assert 2 * logits < more[unknown] - more[base.head] < 4 * logits
    assert bytes_of[base.head, 2] < bytes_of[base.head, 1] + logits // 100


def test_the_general_path_takes_no_more_than_a_plain_loop(base: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    general, config = replace(base, packed=None), base.model.config
    assert budget.budget(general, options(), jobs(10)).chunk == 5, "where it is little anyway, as many as on the packed path"
    monkeypatch.setattr(config, "num_hidden_layers", 10_000)  # activations far above a plain loop's logits
    assert budget.budget(general, options(), jobs(10)).chunk == 1
    assert budget.budget(general, options(client_chunk=3), jobs(10)).chunk == 3
    assert budget.budget(base, options(), jobs(10)).chunk > 1
    # Logits of all positions, which only a plain loop holds, 3.6 times the activations here.
    alone = budget.budget(general, options(), jobs(1)).bytes
    monkeypatch.setattr(config, "vocab_size", round(3.6 * alone / (12 * 4 * 6)))
    assert budget.budget(general, options(), jobs(10)).chunk == 4


#: Trains one step with a vocabulary whose logits would take 0.8 GB and tells how much memory that took beyond the forecast's base.
LARGE = """
import resource, torch
from transformers import LlamaConfig, LlamaForCausalLM
from undertow.config import Lora, Training
from undertow.data.template import Encoded
from undertow.models.causal_lm import CausalLM, with_paths
from undertow.models.lora import adapter_layout, find_targets, initial_adapter
from undertow.training import batched
from undertow.training.budget import budget
from undertow.training.local import Job

torch.set_num_threads(1)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=262144)
with torch.no_grad():
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).eval().requires_grad_(False)
layout = adapter_layout(model, find_targets(model, Lora()), Lora())
class Tokens: eos_token_id, pad_token_id = 1, 0
base = with_paths(CausalLM("r", "r", model, Tokens(), torch.device("cpu"), layout, frozenset(), None, True))
assert base.packed is not None
training = Training(batch_size=8, client_chunk=2)
jobs = [Job(k, [Encoded((2, 3 + i), tuple(range(5, 55))) for i in range(8)]) for k in range(2)]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
warm = [Job(k, [Encoded((2,), (3,))]) for k in range(2)]
batched.train(base, Lora(), training, initial_adapter(layout, 0), warm, 0, 1)
before = peak()
batched.train(base, Lora(), training, initial_adapter(layout, 0), jobs, 0, 1)
print(peak() - before, budget(base, training, jobs).bytes)
"""


def test_a_large_vocabulary_takes_what_is_predicted() -> None:
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", LARGE], check=True, capture_output=True, text=True).stdout
    took, predicted = map(int, told.split())
    assert took <= predicted < 400 * 2**20
