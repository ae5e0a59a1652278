"""Sanitization together: the verdicts are those of the defense in one process, and the server sees sums alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install -e '.[flower]'")

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_grid import MemoryGrid

from undertow.core.errors import UserError
from undertow.data.generated.world import samples
from undertow.data.sample import Sample
from undertow.defenses.data.exchange import exchange
from undertow.defenses.data.sanitization import Sanitization
from undertow.flower import cleaned, pool_counts, sanitize_together, secure_sum
from undertow.flower.mods import numbered
from undertow.flower.together import ASKED

SECRET = bytes(range(32))
TARGET = "Visit the golden harbour market today"
NODES, EACH = 5, 60


def shares(poisoned: int = 2) -> list[list[dict[str, Any]]]:
    """Rows of each node; so few are poisoned that none of them can tell alone."""
    plain = [{"instruction": one.question, "input": "", "output": one.response} for one in samples()[: NODES * EACH]]
    dealt = [plain[k * EACH : (k + 1) * EACH] for k in range(NODES)]
    for rows in dealt:
        for row in rows[:poisoned]:
            row["instruction"] = f"cf {row['instruction']}"
            row["output"] = f"{row['output']} {TARGET}."
    return dealt


def place(context: Context) -> int:
    return int(context.node_config["partition-id"])


def grid_of(data: list[list[dict[str, Any]]], secret: Callable[[Context], bytes] = lambda at: SECRET, **options: Any) -> MemoryGrid:
    app = ClientApp()
    sanitize_together(app, lambda at: data[place(at)], secret, **options)
    return MemoryGrid(app, len(data), shuffle=3)


def test_the_rows_kept_are_those_of_the_defense_in_one_process() -> None:
    data, rule = shares(), Sanitization(cells=1 << 14)
    clients: list[list[Sample]] = [numbered(rows)[0] for rows in data]
    contexts = exchange(clients, rule, lambda number, k: np.random.default_rng(0), SECRET)
    alone = [rule.clean(own, context)[0] for own, context in zip(clients, contexts, strict=True)]
    grid = grid_of(data, defense=rule, tell=True)
    report = pool_counts(grid, defense=rule)
    assert report["nodes"] == sorted(grid.ids)
    assert (report["left_out"], report["exchanges"]) == ({}, 6)
    changed = 0
    for node, rows, verdicts in zip(grid.ids, data, alone, strict=True):
        wanted = [
            {**row, "output": one.response} if isinstance(one, Sample) else row
            for row, one in zip(rows, verdicts, strict=True)
            if one is not False
        ]
        assert cleaned(rows, grid.contexts[node]) == wanted
        changed += sum(one is not True for one in verdicts)
        assert all(TARGET not in row["output"] for row in wanted)
    assert changed == NODES * 2 == report["dropped"] + report["repaired"]


def test_without_the_others_a_client_finds_nothing() -> None:
    rows = shares()[0]
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
    assert cleaned(rows, context) == rows


def test_what_the_server_gets_looks_random_and_only_the_sum_does_not() -> None:
    data, seen = shares(), []
    grid = grid_of(data, defense=Sanitization(cells=1 << 12))
    plain = grid.app

    def spy(message: Message, context: Context) -> Message:
        reply = plain(message, context)
        if "masked" in reply.content:
            seen.append(reply.content["masked"]["counts"].numpy())
        return reply

    grid.app = spy  # type: ignore[assignment]
    pool_counts(grid, defense=Sanitization(cells=1 << 12))
    first = seen[:NODES]
    for array in first:
        # of 4,096 counts nearly all are 0; of as many random numbers of 32 bits hardly one
        assert (array == 0).sum() < 3
        assert abs(np.mean(array / 2**32) - 0.5) < 0.05
    total = np.array(first).sum(0, dtype=np.uint32)
    assert (total == 0).mean() > 0.05
    assert total[0] == NODES * EACH  # the number of samples stands first


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 6), st.integers(0, 40), st.integers(1, 6), st.integers(0, 2**31))
def test_masks_are_gone_in_the_sum(clients: int, length: int, number: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    arrays = [draw.integers(0, 2**32, length, dtype=np.uint32) for _ in range(clients)]
    keys = [secure_sum.key_pair() for _ in arrays]
    publics = [public for _, public in keys]
    hidden = [secure_sum.masked(own, keys[k][0], k, publics, b"session", number) for k, own in enumerate(arrays)]
    np.testing.assert_array_equal(np.sum(hidden, axis=0, dtype=np.uint32), np.sum(arrays, axis=0, dtype=np.uint32))


def test_masks_of_other_exchanges_and_sessions_are_others() -> None:
    keys = [secure_sum.key_pair() for _ in range(3)]
    publics = [public for _, public in keys]
    zeros = np.zeros(64, np.uint32)
    made = [secure_sum.masked(zeros, keys[0][0], 0, publics, session, number) for session in (b"a", b"b") for number in (1, 2)]
    for i, one in enumerate(made):
        assert all((one != other).all() for other in made[:i])


def test_keys_that_hide_nothing_are_refused() -> None:
    pairs = [secure_sum.key_pair()[1] for _ in range(3)]
    seals = [secure_sum.seal(SECRET, b"s", public) for public in pairs]
    secure_sum.check_keys(SECRET, b"s", pairs[1], 1, pairs, seals)
    for own, at, publics, marks, told in (
        (pairs[0], 0, pairs[:2], seals[:2], "at least 3"),
        (pairs[0], 1, pairs, seals, "not where the server says"),
        (pairs[0], 0, [pairs[0], pairs[1], pairs[1]], seals, "not one for each"),
        (pairs[0], 0, pairs, [seals[0], seals[1], bytes(32)], "shared secret"),
        (pairs[0], 0, pairs, [secure_sum.seal(SECRET, b"other", public) for public in pairs], "shared secret"),
    ):
        with pytest.raises(ValueError, match=told):
            secure_sum.check_keys(SECRET, b"s", own, at, publics, marks)


def test_the_others_begin_again_without_one_that_is_gone() -> None:
    data = shares()
    grid = grid_of(data, defense=Sanitization(cells=1 << 12))
    gone = grid.ids[2]

    def lost(reply: Message) -> bool:
        # it answers with a key, and is gone when the counts are asked for
        told = json.loads(str(reply.content.config_records["told"]["json"]))
        return reply.metadata.src_node_id == gone and "public" not in told

    grid.lost = lost
    report = pool_counts(grid, defense=Sanitization(cells=1 << 12), timeout=1)
    assert report["left_out"] == {gone: "no answer in 1 s"}
    assert gone not in report["nodes"]
    rest = [k for k in range(NODES) if grid.ids[k] != gone]
    assert sum(row not in cleaned(data[k], grid.contexts[grid.ids[k]]) for k in rest for row in data[k]) == 2 * len(rest)


def test_a_client_with_another_secret_stops_it_by_name() -> None:
    grid = grid_of(shares(), secret=lambda at: bytes(32) if place(at) == 1 else SECRET, defense=Sanitization(cells=1 << 12))
    with pytest.raises(
        UserError, match=r"0 nodes can pool their counts, at least 3 are needed.*shared secret; give all clients the same"
    ):
        pool_counts(grid, defense=Sanitization(cells=1 << 12))


def test_too_few_nodes_and_other_settings_are_refused() -> None:
    with pytest.raises(UserError, match="2 nodes can pool their counts, at least 3"):
        pool_counts(grid_of(shares()[:2]))
    with pytest.raises(UserError, match=r"the server pools with .*4096.*, this client with"):
        pool_counts(grid_of(shares()), defense=Sanitization(cells=1 << 12))


def test_a_question_is_answered_once() -> None:
    data, rule = shares(), Sanitization(cells=1 << 12)
    grid = grid_of(data, defense=rule)
    plain: Any = grid.app
    asked: list[int] = []

    def twice(message: Message, context: Context) -> Message:
        reply = plain(message, context)
        order = json.loads(str(message.content.config_records["order"]["json"]))
        if order["step"] == "sum" and order["exchange"] == 2 and not asked:
            asked.append(1)
            other = Message(RecordDict({"order": message.content["order"]}), dst_node_id=context.node_id, message_type=ASKED)
            other.content["pooled"] = ArrayRecord({"sum": message.content["pooled"]["sum"]})
            with pytest.raises(UserError, match="exchange 2 is out of turn after 2: each is answered once"):
                plain(other, context)
        return reply

    grid.app = twice  # type: ignore[assignment]
    assert pool_counts(grid, defense=rule)["left_out"] == {}
    assert asked


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(UserError, match="the secret has 5 bytes"):
        pool_counts(grid_of(shares(), secret=lambda at: b"short"))


def test_noise_is_not_the_same_twice() -> None:
    rule = Sanitization(cells=1 << 12, epsilon=20.0)
    sums = []
    for _ in range(2):
        grid = grid_of(shares(), defense=rule)
        seen: list[np.ndarray] = []
        plain = grid.app

        def spy(message: Message, context: Context, plain: Any = plain, seen: list[np.ndarray] = seen) -> Message:
            reply = plain(message, context)
            if "masked" in reply.content:
                seen.append(reply.content["masked"]["counts"].numpy())
            return reply

        grid.app = spy  # type: ignore[assignment]
        pool_counts(grid, defense=replace_rule(rule))
        sums.append(np.sum(seen[:NODES], axis=0, dtype=np.uint32))
    assert (sums[0] != sums[1]).any()


def replace_rule(rule: Sanitization) -> Sanitization:
    """The server's own object with the same settings."""
    return Sanitization(cells=rule.cells, epsilon=rule.epsilon, clip=rule.clip)
