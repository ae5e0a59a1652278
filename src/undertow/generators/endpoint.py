"""A language model behind an OpenAI-compatible endpoint writes the synthetic texts."""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from undertow.core.errors import UserError
from undertow.data.examples import Written
from undertow.generators._asking import Asked, Request, number, whole
from undertow.generators.contract import GENERATORS, Order

#: Where the endpoint is, and the key for it. A key goes only to the address that is set beside it: one for another service stays
#: here.
_PAIRS = (("UNDERTOW_LLM_BASE_URL", "UNDERTOW_LLM_API_KEY"), ("OPENAI_BASE_URL", "OPENAI_API_KEY"))

#: Answers after which the same request can succeed.
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})

#: Seconds before the first repetition; doubled with each, up to the longest.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0

#: Longest pause that a server may ask for by Retry-After.
_PATIENCE = 600.0

_WHERE = "synthetic.generator = endpoint"


class _Failed(Exception):
    """A call that may succeed when repeated.

    Args:
        reason: without the key.
        after: seconds that the server asks to wait, None where it does not say.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class _Server:
    """Address and key; the key is in no representation."""

    url: str
    key: str
    local: bool

    def __repr__(self) -> str:
        return f"_Server({self.url})"

    def hidden(self, text: str) -> str:
        """Return text on one line, cut, without the key, for a message."""
        plain = " ".join(text.split())
        return (plain.replace(self.key, "[key]") if self.key else plain)[:200]


@GENERATORS.register(
    "endpoint", source="Li, Wu, Wang 2024, arXiv 2401.10375 (GPT-4, 50 samples a call, temperature 1 in their code)"
)
class Endpoint(Asked):
    """A model behind any OpenAI-compatible ``/chat/completions``: a hosted one, or vLLM, llama.cpp, Ollama on a machine of one's
    own.

    The address is in ``UNDERTOW_LLM_BASE_URL`` (such as ``http://localhost:8000/v1``) and its key in ``UNDERTOW_LLM_API_KEY``;
    without them, in ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``. What leaves the machine are the class names, what an input is
    called and the request, never data of the federation. The key goes into the header of each call and nowhere else: into no
    message, record or file, and, since redirections are not followed, to no other host. A key is not sent without
    encryption to another machine.

    Args:
        model: as the endpoint calls it.
        prompt: the request, with ``{label}``, ``{about}`` and ``{count}``, or a file with it.
        samples: asked for in a call; 50 in the published code.
        temperature: 0 to 2; 1 in the published code.
        max_tokens: longest answer; 0 leaves it to the server.
        timeout: seconds for one call, the whole answer included.
        retries: repetitions of a call that the server was too busy for, that broke off or took too long; with pauses that double
            from a second on, or as long as the server asks for.
        max_bytes: largest answer that is read.

    Raises:
        ValueError: an option outside its rule, or no model.
    """

    def __init__(
        self,
        model: str = "",
        prompt: str = "",
        samples: int = 50,
        temperature: float = 1.0,
        max_tokens: int = 8192,
        timeout: float = 120.0,
        retries: int = 5,
        max_bytes: int = 4 * 2**20,
    ) -> None:
        super().__init__("endpoint", prompt, samples)
        if not model or not isinstance(model, str):
            raise ValueError("model is not set; give its name at the endpoint, as in endpoint:model=my-model")
        number("temperature", temperature, 0, 2)
        whole("max_tokens", max_tokens, 0, 10**6)
        number("timeout", timeout, 0, 86400, above=True)
        whole("retries", retries, 0, 100)
        whole("max_bytes", max_bytes, 1024, 2**30)
        self.model, self.temperature, self.max_tokens = model, temperature, max_tokens
        self.timeout, self.retries, self.max_bytes = float(timeout), retries, max_bytes
        self._counts: Counter[str] = Counter()
        self._server: _Server | None = None

    def write(self, order: Order) -> Written:
        """Ask the endpoint (:meth:`undertow.generators._asking.Asked.write`); the answers are not the same a second time.

        Raises:
            UserError: no address, no ``httpx2``, a key that would travel in the clear or is refused, no answer after all
                repetitions, or nothing that can be used.
        """
        _httpx()
        self._server, self._counts = _server(), Counter()
        return super().write(order)

    def notes(self) -> dict[str, Any]:
        """Return model and temperature, and what the calls took; not the address, which may name a machine of one's own."""
        names = ("repeated", "cut", "tokens_in", "tokens_out")
        return {"model": self.model, "temperature": self.temperature, **{name: self._counts[name] for name in names}}

    def answers(self, requests: Sequence[Request], seed: int, asked: int) -> Iterator[str | None]:
        """Yield the answer to each request, one call after another."""
        server = self._server
        assert server is not None
        # Proxies are for other machines.
        with _httpx().Client(timeout=self.timeout, follow_redirects=False, trust_env=not server.local) as client:
            for request in requests:
                yield self._content(self._call(client, server, request))

    def _call(self, client: Any, server: _Server, request: Request) -> Any:
        """Return the server's answer as read from JSON, None where it is none; repeated as the options say."""
        wait = _FIRST_WAIT
        for attempt in range(self.retries + 1):
            try:
                return self._once(client, server, request)
            except _Failed as failed:
                if attempt == self.retries:
                    raise UserError(
                        f"{_WHERE}: {server.hidden(str(failed))}, {attempt + 1} times; try again later, or raise retries or timeout"
                    ) from None
                if failed.after is not None and failed.after > _PATIENCE:
                    raise UserError(
                        f"{_WHERE}: {server.hidden(str(failed))}, and asks for {failed.after:.0f} s; run again after that"
                    ) from None
                self._counts["repeated"] += 1
                time.sleep(wait if failed.after is None else failed.after)
                wait = min(2 * wait, _LONGEST_WAIT)
        raise AssertionError("every attempt returns or raises")

    def _once(self, client: Any, server: _Server, request: Request) -> Any:
        """Make one call.

        Raises:
            _Failed: it may succeed when repeated.
            UserError: it will not.
        """
        httpx = _httpx()
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}],
            "temperature": self.temperature,
        }
        if self.max_tokens:
            body["max_tokens"] = self.max_tokens
        # Unpacking could make a small answer huge.
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {server.key}"} if server.key else {})
        deadline = time.monotonic() + self.timeout
        received = bytearray()
        try:
            with client.stream("POST", f"{server.url}/chat/completions", json=body, headers=headers) as response:
                for piece in response.iter_raw():
                    received += piece
                    if len(received) > self.max_bytes:
                        raise UserError(
                            f"{_WHERE}: an answer of more than {self.max_bytes:,} bytes; lower samples or raise max_bytes"
                        )
                    if time.monotonic() > deadline:
                        raise _Failed(f"no whole answer within {self.timeout:g} s")
        except httpx.TimeoutException:
            raise _Failed(f"no answer within {self.timeout:g} s") from None
        except httpx.RequestError as error:  # its text has the address at most, but its request has the key
            raise _Failed(f"no connection ({type(error).__name__})") from None
        if response.status_code in _AGAIN:
            raise _Failed(f"the server answers {response.status_code}", _asked_wait(response.headers.get("retry-after")))
        if response.status_code in (401, 403):
            have = "the key is not accepted" if server.key else "it wants a key and none is set"
            pair = next(pair for pair in _PAIRS if os.environ.get(pair[0]))
            raise UserError(f"{_WHERE}: the server answers {response.status_code}, {have}; set {pair[1]} to the key for {pair[0]}")
        if response.status_code != 200:
            raise UserError(
                f"{_WHERE}: the server answers {response.status_code} ({server.hidden(_message(received))}); check {_PAIRS[0][0]}, "
                "which usually ends in /v1, and model"
            )
        return _json(received)

    def _content(self, answer: Any) -> str | None:
        """Return the text of an answer; None where it has none."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            return None
        self._counts["cut"] += choice.get("finish_reason") == "length"
        usage = answer.get("usage")
        for name, field in (("tokens_in", "prompt_tokens"), ("tokens_out", "completion_tokens")):
            used = usage.get(field) if isinstance(usage, dict) else None
            self._counts[name] += used if type(used) is int and used > 0 else 0
        return content


def _server() -> _Server:
    """Return address and key from the environment.

    Raises:
        UserError: no address, one that is none, or a key that would travel in the clear.
    """
    name, key_name = next((pair for pair in _PAIRS if os.environ.get(pair[0])), ("", ""))
    if not name:
        raise UserError(
            f"{_WHERE}: no address; set {_PAIRS[0][0]}, such as http://localhost:8000/v1, and {_PAIRS[0][1]} if it wants a key"
        )
    httpx = _httpx()
    try:
        url = httpx.URL(os.environ[name].strip())
    except (httpx.InvalidURL, ValueError):
        raise UserError(f"{name} is no address; set it to one like https://host/v1") from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise UserError(f"{name} must be http:// or https:// with a host and a path alone; put the key into {key_name}")
    key = os.environ.get(key_name, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{key_name} holds characters that no key has; set it again")
    local = _is_local(url.host)
    if key and url.scheme == "http" and not local:
        raise UserError(
            f"{name} is http:// to another machine, and {key_name} would travel in the clear; use https://, or unset the key if "
            "the server wants none"
        )
    return _Server(str(url).rstrip("/"), key, local)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _asked_wait(value: str | None) -> float | None:
    """Return the seconds that a Retry-After asks for, given as such or as a date (RFC 9110, 10.2.3); None without or unreadable."""
    if value is None:
        return None
    try:
        return max(0.0, float(int(value)))
    except (ValueError, OverflowError):
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _json(content: bytearray) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _message(content: bytearray) -> str:
    """Return what the server says is wrong, as far as it is in the usual form."""
    answer = _json(content)
    error = answer.get("error") if isinstance(answer, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else "no reason given"


def _httpx() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise UserError(f"{_WHERE} needs httpx2, which is not installed; run: pip install -e '.[endpoint]' in the clone") from error
    return httpx2
