"""The page and its data over HTTP: reading alone, from one folder, for this machine's browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders, QueryParams
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from undertow.core.errors import UserError
from undertow.view.content import Content, Kept, shown
from undertow.view.index import Index, Table, inside, stamp_of

STATIC = Path(__file__).parent / "static"
#: The page takes scripts and styles from this server alone, and nothing from elsewhere: a text that looks like HTML can do nothing.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: A report page of a run may come from anybody: no script runs in it, and it is of no origin.
REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
#: Names under which a browser of this machine asks; another one is a page elsewhere that had its own name point here.
HOSTS = ["127.0.0.1", "localhost"]
#: Rows sent at a time, at most.
MOST_ROWS = 500
#: Pages of runs that are kept as they were sent last.
MOST_PAGES = 8
#: Bytes of a scan or audit that are read, at most.
MOST_BYTES = 200 << 20
_RUN_FILES = ("config.yaml", "versions.json", "data.json", "rounds.jsonl", "result.json", "poison.jsonl", "threat.json")


class _Headers:
    """Adds the headers of safety to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {"Content-Security-Policy": POLICY, **HEADERS}.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, sending)


def make_app(root: Path) -> Starlette:
    """Return the application for a folder.

    Raises:
        UserError: no such folder.
    """
    index, content, pages = Index(root), Content(), Kept(MOST_PAGES)

    async def table(request: Request) -> Response:
        known = index.known()
        found: Table = known if known is not None else await run_in_threadpool(index.look)
        packed = "gzip" in request.headers.get("accept-encoding", "")
        more = {"Vary": "Accept-Encoding", **({"Content-Encoding": "gzip"} if packed else {})}
        return _tagged(request, found.tag, lambda: found.packed if packed else found.plain, more)

    def run(request: Request) -> Response:
        entry = index.entry(_path(request))
        stamp = stamp_of(entry.folder, _RUN_FILES)

        def page() -> bytes:
            told = content.page(index.run(entry.path))
            return _encode({**told, "row": {**entry.row, "config": {}}, "config": entry.config})

        status = entry.row["status"]
        return _tagged(request, f'"{hash((stamp, status))}"', lambda: pages.get((entry.path, status), stamp, page))

    def curves(request: Request) -> Response:
        return _json({path: content.curves(index.run(path)) for path in request.query_params.getlist("path")})

    def poison(request: Request) -> Response:
        offset, limit = _piece(request.query_params)
        return _json(content.poison(index.run(_path(request)), request.query_params.get("q", ""), offset, limit))

    def outputs(request: Request) -> Response:
        asked = request.query_params
        offset, limit = _piece(asked)
        choice = shown(asked.get("show", "all"))
        return _json(
            content.outputs(index.run(_path(request)), _number(asked, "round", 0), choice, asked.get("q", ""), offset, limit)
        )

    def document(request: Request) -> Response:
        return _json(_read(inside(index.root, index.document(_path(request)))))

    def report(request: Request) -> Response:
        path = inside(index.root, index.entry(_path(request)).folder / "report.html")
        if not path.is_file():
            raise UserError("this run has no report yet; run `undertow report` to write it")
        return Response(path.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    routes = [
        Route(f"/api/{call.__name__}", _answering(call), methods=["GET"])
        for call in (run, curves, poison, outputs, document, report)
    ]
    app = Starlette(
        routes=[Route("/api/table", table, methods=["GET"]), *routes, Mount("/", StaticFiles(directory=STATIC, html=True))],
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)],
    )
    app.state.index = index
    return app


def _answering(call: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """Let what is wrong with a run be the answer, in one line."""

    def answer(request: Request) -> Response:
        try:
            return call(request)
        except (UserError, OSError) as error:
            return _json({"error": " ".join(str(error).split())}, status=404)

    return answer


def _path(request: Request) -> str:
    return request.query_params.get("path", "")


def _piece(asked: QueryParams) -> tuple[int, int]:
    return max(0, _number(asked, "offset", 0)), min(MOST_ROWS, max(1, _number(asked, "limit", 100)))


def _number(asked: QueryParams, name: str, otherwise: int) -> int:
    text = asked.get(name, "")
    try:
        return int(text) if text else otherwise
    except ValueError as error:
        raise UserError(f"{name} = {text!r}: give a whole number") from error


def _read(path: Path) -> Any:
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path.name} has more than {MOST_BYTES >> 20} MB; scan in parts")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path.name} is not JSON ({error}); write it again") from error


def _tagged(request: Request, tag: str, body: Callable[[], bytes], headers: Mapping[str, str] | None = None) -> Response:
    told = {"ETag": tag, **(headers or {})}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return Response(body(), media_type="application/json", headers=told)


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _json(value: Any, status: int = 200) -> Response:
    return Response(_encode(value), status_code=status, media_type="application/json")
