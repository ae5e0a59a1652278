"""How a node's ClientApp and its resident worker talk: one JSON header and raw arrays a message, over a Unix socket.

This module and the ClientApp load no torch: Flower starts a new process for every message, and torch would be most of its time.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct(">Q")
#: The longest header that is read; it holds names and numbers of at most all clients of a node.
_HEADER = 1 << 26


def send(connection: socket.socket, header: dict[str, Any], arrays: Sequence[bytes] = ()) -> None:
    """Send one message; ``arrays`` in numpy's file format."""
    told = json.dumps({"header": header, "sizes": [len(array) for array in arrays]}).encode()
    connection.sendall(_LENGTH.pack(len(told)) + told)
    for array in arrays:
        connection.sendall(array)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[bytes]]:
    """Wait for one message and return its header and arrays.

    Raises:
        ConnectionError: the other side went away, or sends something else.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > _HEADER:
        raise ConnectionError(f"a header of {length} bytes, at most {_HEADER} are read")
    try:
        told = json.loads(_exactly(connection, length))
        header, sizes = dict(told["header"]), [int(size) for size in told["sizes"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ConnectionError(f"a header that cannot be read ({error})") from error
    return header, [_exactly(connection, size) for size in sizes]


def ask(path: str, header: dict[str, Any], arrays: Sequence[bytes] = ()) -> tuple[dict[str, Any], list[bytes]]:
    """Send one message to the worker that listens at ``path``, and return its answer.

    Raises:
        ConnectionError: there is no worker, or it went away.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise ConnectionError(f"no worker at {path} ({error.strerror})") from error
        send(connection, header, arrays)
        return receive(connection)


def listen(path: str) -> socket.socket:
    """Return a socket at ``path`` that this user alone can connect to."""
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen()
    return listener


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionError("the other side closed the connection in the middle of a message")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
