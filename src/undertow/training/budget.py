"""How many clients train side by side, by the memory that the shapes ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undertow.config import Training
from undertow.models.causal_lm import CausalLM
from undertow.models.head import PIECE, WHOLE, GivenLogits
from undertow.models.memory import total_bytes
from undertow.training.local import Job

#: Clients a chunk on a CPU: beyond this the time per client no longer falls, and memory is all that more would cost.
_CPU_CHUNK = 8

#: Bytes that one logit takes in a plain loop, which has those of all positions: itself, its logarithm, a slice and gradients.
_LOGIT = 12

#: Clients on the general path go side by side up to this many bytes, whatever a plain loop takes.
_LITTLE = 1 << 28

#: Share of the memory beside the base that activations and optimiser states may take.
_SHARE = 0.5


@dataclass(frozen=True)
class Budget:
    """What the memory allows.

    Attributes:
        chunk: clients side by side in one pass.
        recompute: whether layers are computed twice to keep fewer activations.
        bytes: predicted peak of one chunk: activations, gradients, optimiser states; without the base.
    """

    chunk: int
    recompute: bool
    bytes: int


def budget(base: CausalLM, training: Training, jobs: Sequence[Job]) -> Budget:
    """Choose the chunk of clients and whether to recompute activations.

    Counted from the machine's whole memory, not from what is free just now: the chunks decide the order of
    floating-point sums, and the same config must give the same bits tomorrow. Nor does it depend on the number of
    threads. Activations are recomputed where asked for, or where not even one client fits. On a CPU's general path, whose chunks
    go one at a time, no more clients stand side by side than the memory of a plain loop holds.
    """
    room = _SHARE * max(0, total_bytes(base.device) - base.bytes)
    longest = max((len(row.prompt) + len(row.answer) for job in jobs for row in job.data), default=1)
    own, head = _head_bytes(base, training, longest)
    whole, thin = (_client_bytes(base, training, longest, recompute) + own for recompute in (False, True))
    recompute = base.packed is not None and (training.recompute == "on" or (training.recompute == "auto" and whole + head > room))
    each = thin if recompute else whole
    fits = max(1, int((room - head) // each))
    if training.client_chunk:
        chunk = min(training.client_chunk, len(jobs))
    elif base.device.type != "cpu":
        chunk = min(len(jobs), fits)
    else:
        # The time per client is flat from about five clients up; two chunks at least give two cores work.
        count = max(-(-len(jobs) // _CPU_CHUNK), min(2, len(jobs)))
        chunk = min(fits, -(-len(jobs) // count))
        if base.packed is None:
            plain = whole - own + _LOGIT * _positions(base, training, longest)
            chunk = min(chunk, max(1, int((max(plain, _LITTLE) - head) // each)))
    return Budget(max(1, chunk), recompute, max(1, chunk) * each + head)


def _client_bytes(base: CausalLM, training: Training, longest: int, recompute: bool) -> int:
    config = base.model.config
    hidden, layers = getattr(config, "hidden_size", 1024), getattr(config, "num_hidden_layers", 12)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    heads = getattr(config, "num_attention_heads", 8)
    width = 12 * hidden + 4 * inner + heads * min(longest, 1024)
    tokens = training.batch_size * longest
    activations = tokens * (width + layers * hidden if recompute else layers * width)
    # The adapter appears as parameters, gradient, two moments and two temporaries, in float32.
    return int(base.model.dtype.itemsize) * activations + 4 * 6 * base.layout.size


def _head_bytes(base: CausalLM, training: Training, longest: int) -> tuple[int, int]:
    """Return what logits take for each client side by side, and whatever their number.

    A plain head gives logits piece by piece: as they come, their logarithms and a temporary, all clients' together. Another one
    gives all positions of every client at once, and their gradient is as large again.
    """
    positions = _positions(base, training, longest)
    if isinstance(base.head, GivenLogits) and base.packed is None:
        return (2 * int(base.model.dtype.itemsize) + 4) * positions, 0
    return 0, min(4 * positions, 3 * max(WHOLE, PIECE))


def _positions(base: CausalLM, training: Training, longest: int) -> int:
    """Return the logits of all positions of one client's batch."""
    return training.batch_size * longest * int(getattr(base.model.config, "vocab_size", None) or 32_000)
