"""Serving the page on this machine, and opening the browser."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import webbrowser
from pathlib import Path

from undertow.core.errors import UserError

HOST = "127.0.0.1"


def serve(folder: Path, port: int = 0, browser: bool = True) -> None:
    """Show a folder until interrupted.

    Args:
        folder: with runs, sweeps, scans and audits at any depth; nothing in it is written.
        port: of this machine alone; 0 takes a free one.
        browser: whether to open the page.

    Raises:
        UserError: no such folder, a port in use, or the extra ``view`` is missing.
    """
    missing = [package for package in ("starlette", "uvicorn") if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"undertow view needs {' and '.join(missing)}: pip install -e '.[view]' in the clone")
    from undertow.view.app import make_app

    app = make_app(folder)
    # the folder is searched meanwhile
    threading.Thread(target=app.state.index.look, daemon=True).start()
    import uvicorn

    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(128)  # before the address is told
    except OSError as error:
        raise UserError(f"--port {port} cannot be used ({error.strerror}); leave it out for a free one") from error
    os.nice(10)  # a page is never in the way of a run that trains on the same machine
    address = f"http://{HOST}:{listening.getsockname()[1]}/"
    print(f"{folder}: {address} (Ctrl-C ends it)", flush=True)
    if browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)).run(
        sockets=[listening]
    )
