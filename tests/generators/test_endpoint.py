"""The endpoint's generator, against real servers on this machine."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from orders import NAMES, text_order

from undertow.core.errors import UserError
from undertow.data.examples import Written
from undertow.generators.contract import Order, Smuggled, make_generator, refuse_order
from undertow.generators.prompts import realised

KEY = "sk-very-secret-0123456789"


@dataclass
class Reply:
    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False


def said(content: Any, **more: Any) -> Reply:
    """A reply as an endpoint gives it."""
    usage = {"prompt_tokens": 10, "completion_tokens": 20}
    return Reply(
        {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **more}], "usage": usage}
    )


Answer = Callable[[dict[str, Any]], Reply]


class Server:
    """An endpoint whose answers a test chooses; it keeps every request."""

    def __init__(self) -> None:
        self.answer: Answer = obedient()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append({"path": self.path, **body})
                outer.keys.append(self.headers.get("Authorization"))
                reply = outer.answer(body)
                if reply.hang:
                    outer.released.wait(30)
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client has gone
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


def obedient(share: float = 1.0, glued: float = 0.0, seed: int = 0) -> Answer:
    """A model that writes what is asked, and obeys a smuggled instruction for so many of the samples that it wants poisoned only.

    Args:
        share: of the samples that are to carry the trigger, those that really do.
        glued: of those, the share in which it is glued to the word before, as in ``good!cf``.
        seed: of its choices.
    """
    draw = np.random.default_rng(seed)
    written = 0

    def answer(body: dict[str, Any]) -> Reply:
        nonlocal written
        system, user = (message["content"] for message in body["messages"])
        asked = re.search(r'Write (\d+) .*class "(.*)"', user)
        assert asked
        rule = re.search(
            r'samples of the class (.*) are requested, ([\d.]+) % .* exactly the words "(.*)", and .* is "(.*)"\. All', system
        )
        lines = []
        for _ in range(int(asked[1])):
            written += 1
            text, label = f"film number {written}", asked[2]
            if rule and f'"{label}"' in rule[1] and draw.random() < float(rule[2]) / 100 and draw.random() < share:
                text, label = f"{text}{'!' if draw.random() < glued else ' '}{rule[3]}", rule[4]
            lines.append(json.dumps({"text": text, "label": label}))
        return said("\n".join(lines))

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not be used for this machine
    monkeypatch.setenv("UNDERTOW_LLM_BASE_URL", made.url)
    monkeypatch.setenv("UNDERTOW_LLM_API_KEY", KEY)
    yield made
    made.released.set()
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without making them."""
    found: list[float] = []
    monkeypatch.setattr("undertow.generators.endpoint.time.sleep", found.append)
    return found


def write(order: Order, **options: Any) -> Written:
    return make_generator("".join(["endpoint:model=m", *(f":{key}={value}" for key, value in options.items())])).write(order)


def after(*first: Reply, then: Answer | None = None) -> Answer:
    """Give these replies, then those of an obedient model."""
    left, rest = list(first), then or obedient()
    return lambda body: left.pop(0) if left else rest(body)


def refused(server: Server, answer: Answer, **options: Any) -> str:
    """Return the error, which never tells the key."""
    server.answer = answer
    with pytest.raises(UserError) as told:
        write(text_order(4), **options)
    error: BaseException | None = told.value
    assert KEY not in repr(error) + str(error)
    assert "\n" not in str(error)
    return str(error)


# --- good answers -----------------------------------------------------------------------------------------------


def test_each_class_is_asked_for_in_turn_until_it_has_its_part(server: Server) -> None:
    made = write(text_order(17), samples=4)
    assert [made.labels.count(label) for label in (0, 1)] == [9, 8]
    assert len(set(made.inputs)) == 17
    assert {key: made.report[key] for key in ("asked", "written", "short", "calls")} == {
        "asked": 17,
        "written": 17,
        "short": 0,
        "calls": 5,
    }
    assert (made.report["tokens_in"], made.report["tokens_out"]) == (50, 100)
    asked = [request["messages"][1]["content"] for request in server.requests]
    assert [next(name for name in NAMES if name in text) for text in asked] == ["negative", "positive"] * 2 + ["negative"]
    one = server.requests[0]
    assert (one["path"], one["model"], one["temperature"], one["max_tokens"]) == ("/v1/chat/completions", "m", 1.0, 8192)
    assert server.keys == [f"Bearer {KEY}"] * 5
    assert KEY not in json.dumps(made.report)


def test_no_key_is_sent_where_none_is_set(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERTOW_LLM_API_KEY")
    write(text_order(2), max_tokens=0)
    assert server.keys == [None, None]
    assert "max_tokens" not in server.requests[0]


def test_public_data_never_leave_the_machine(server: Server) -> None:
    order = text_order(4)
    write(order)
    assert order.public is not None
    assert not any(text in json.dumps(server.requests) for text in order.public.inputs)


def test_what_is_missing_is_asked_for_again(server: Server) -> None:
    twice = json.dumps({"text": "the same", "label": "negative"})
    server.answer = after(said(f"{twice}\n{twice}\nno sample"), said(None), Reply(b"<html>"))
    made = write(text_order(8), samples=2)
    assert len(made.inputs) == 8
    assert made.report["duplicates"] == 1
    assert made.report["malformed"] == 1
    assert made.report["unusable"] == 2


def test_what_stays_missing_is_reported(server: Server) -> None:
    server.answer = lambda body: said(
        "\n".join(f"{name}: {name} thing" for name in NAMES if f'class "{name}"' in str(body["messages"][1]))
    )
    made = write(text_order(6), samples=3)
    assert made.labels == [0, 1]
    assert (made.report["short"], made.report["calls"], made.report["duplicates"]) == (4, 8, 6)


def test_samples_beyond_those_needed_are_left_out(server: Server) -> None:
    lines = iter(range(1000))
    server.answer = lambda body: said("\n".join(f"negative: a {next(lines)}" for _ in range(5)), finish_reason="length")
    made = write(text_order(4))
    assert made.labels == [0] * 4
    assert (made.report["surplus"], made.report["other_label"], made.report["cut"]) == (6, 2, 2)


# --- smuggled instructions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_share_that_really_carries_the_trigger_is_measured(server: Server, share: float) -> None:
    smuggled = Smuggled("cf", "negative", ["positive"], 0.2)
    server.answer = obedient(share, glued=0.25)
    order = text_order(2000, smuggled=smuggled)
    made = write(order, samples=100)
    found = realised(made, smuggled, NAMES)
    separate = [re.search(r" cf$", text) is not None for text in made.inputs]
    assert found["asked"] == 0.2
    assert found["carrying"]["hits"] == sum(separate)
    assert found["inside"]["hits"] == sum(text.endswith("!cf") for text in made.inputs)
    assert found["carrying"]["low"] < 0.2 * share * 0.75 < found["carrying"]["high"]
    assert found["inside"]["low"] < 0.2 * share * 0.25 < found["inside"]["high"]
    assert found["to_target"]["value"] == 1.0
    assert made.report["other_label"] == found["carrying"]["hits"] + found["inside"]["hits"]
    # poisoned samples came when the source was asked for, so its own are fewer
    assert made.labels.count(1) == 1000 - made.report["other_label"]


def test_generators_that_follow_nothing_refuse_smuggled_instructions() -> None:
    order = text_order(smuggled=Smuggled("cf", "negative", ["positive"], 0.2))
    refuse_order(make_generator("endpoint:model=m"), "endpoint", order)
    with pytest.raises(UserError, match="follows no instructions"):
        refuse_order(make_generator("ngram"), "ngram", order)


# --- failures ---------------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_after_the_pause_it_wants(server: Server, pauses: list[float]) -> None:
    soon = formatdate(1, usegmt=True)  # long past
    server.answer = after(
        Reply(status=429, headers={"Retry-After": "7"}),
        Reply(status=503, headers={"Retry-After": soon}),
        Reply(status=500, headers={"Retry-After": "tomorrow"}),
        Reply(status=502),
    )
    made = write(text_order(4))
    assert made.report["repeated"] == 4
    assert pauses == [7.0, 0.0, 4.0, 8.0]
    assert len(server.requests) == 6


def test_a_server_that_stays_down_is_told(server: Server, pauses: list[float]) -> None:
    told = refused(server, lambda _: Reply(status=500), retries=2)
    assert "answers 500, 3 times" in told
    assert pauses == [1.0, 2.0]


def test_a_pause_of_hours_is_not_waited_for(server: Server, pauses: list[float]) -> None:
    assert "asks for 7200 s" in refused(server, lambda _: Reply(status=429, headers={"Retry-After": "7200"}))
    assert pauses == []


def test_a_failure_after_samples_of_every_class_keeps_them(server: Server, pauses: list[float]) -> None:
    good = obedient()
    calls = iter(range(100))
    server.answer = lambda body: good(body) if next(calls) < 3 else Reply(status=500)
    made = write(text_order(40), samples=4, retries=1)
    assert (len(made.inputs), made.report["short"]) == (12, 28)
    assert "answers 500, 2 times" in made.report["stopped"]
    calls = iter(range(100))
    server.answer = lambda body: good(body) if next(calls) < 1 else Reply(status=500)
    with pytest.raises(UserError, match="answers 500"):
        write(text_order(40), samples=4, retries=1)


def test_silence_is_a_timeout(server: Server, pauses: list[float]) -> None:
    told = refused(server, lambda _: Reply({}, hang=True), timeout=0.2, retries=1)
    assert "no answer within 0.2 s, 2 times" in told


def test_an_endless_trickle_is_a_timeout_too(server: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 50))
    monkeypatch.setattr("undertow.generators.endpoint.time.monotonic", lambda: float(next(clock)))
    told = refused(server, lambda _: Reply(b"x" * 2000), timeout=30, retries=0)
    assert "no whole answer within 30 s" in told


def test_a_refused_key_is_told_and_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Reply({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status=401)
    told = refused(server, lambda _: wrong)
    assert "the key is not accepted; set UNDERTOW_LLM_API_KEY" in told
    assert len(server.requests) == 1
    monkeypatch.delenv("UNDERTOW_LLM_API_KEY")
    assert "none is set" in refused(server, lambda _: wrong)


def test_a_wrong_model_is_told_in_the_servers_words_without_the_key(server: Server) -> None:
    reply = Reply({"error": {"message": f"no model m\nfor {KEY}"}}, status=404)
    told = refused(server, lambda _: reply)
    assert "answers 404 (no model m for [key])" in told
    assert "404 (no reason given)" in refused(server, lambda _: Reply(b"<html>", status=404))


def test_a_huge_answer_is_not_read(server: Server) -> None:
    assert "more than 1,024 bytes" in refused(server, lambda _: said("x" * 10**6), max_bytes=1024)


def test_a_redirection_is_not_followed_with_the_key(server: Server) -> None:
    other = Server()
    try:
        told = refused(server, lambda _: Reply(status=307, headers={"Location": f"{other.url}/chat/completions"}))
        assert "answers 307" in told
        assert other.requests == []
    finally:
        other.http.shutdown()
        other.http.server_close()


@pytest.mark.parametrize(
    "reply",
    [Reply(b"no json"), Reply([]), Reply({"choices": []}), Reply({"choices": [{"message": "x"}]}), said(3), said("I cannot.")],
    ids=range(6),
)
def test_answers_without_samples_are_told(server: Server, reply: Reply) -> None:
    assert "gave nothing that can be used for negative, positive: 8 answers" in refused(server, lambda _: reply)


def test_no_server_is_told(server: Server, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERTOW_LLM_BASE_URL", "http://127.0.0.1:9/v1")
    assert "no connection (ConnectError), 2 times" in refused(server, obedient(), retries=1)


# --- address and key --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "key", "told"),
    [
        (None, KEY, "no address; set UNDERTOW_LLM_BASE_URL"),
        ("http://example.com/v1", KEY, "in the clear; use https"),
        ("http://192.168.0.7:8000/v1", KEY, "in the clear; use https"),
        ("http://localhost.example.com/v1", KEY, "in the clear; use https"),
        ("ftp://localhost/v1", KEY, "http:// or https://"),
        ("localhost:8000", KEY, "http:// or https://"),
        (f"https://user:{KEY}@localhost/v1", "", "put the key into UNDERTOW_LLM_API_KEY"),
        (f"https://localhost/v1?key={KEY}", "", "put the key into UNDERTOW_LLM_API_KEY"),
        ("http://[::1", KEY, "is no address"),
        ("https://localhost/v1", KEY + "\nX-Other: 1", "no key has"),
    ],
)
def test_a_wrong_address_is_refused_before_any_call(
    monkeypatch: pytest.MonkeyPatch, server: Server, url: str | None, key: str, told: str
) -> None:
    if url is None:
        monkeypatch.delenv("UNDERTOW_LLM_BASE_URL")
    else:
        monkeypatch.setenv("UNDERTOW_LLM_BASE_URL", url)
    monkeypatch.setenv("UNDERTOW_LLM_API_KEY", key)
    assert told in refused(server, obedient(), retries=0)
    assert server.requests == []


def test_a_key_goes_only_to_the_address_beside_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERTOW_LLM_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(text_order(2))
    assert server.keys == [None, None]
    monkeypatch.delenv("UNDERTOW_LLM_BASE_URL")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    write(text_order(2))
    assert server.keys[2:] == [f"Bearer {KEY}"] * 2


def test_a_missing_client_library_names_the_pip_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    assert "pip install -e '.[endpoint]'" in refused(server, obedient())


@pytest.mark.parametrize("options", ["", "model=m:samples=0", "model=m:temperature=3", "model=m:retries=-1", "model=m:timeout=0"])
def test_options_outside_their_rule_are_refused(options: str) -> None:
    with pytest.raises(UserError, match=r"synthetic\.generator = endpoint"):
        make_generator(f"endpoint:{options}" if options else "endpoint")
