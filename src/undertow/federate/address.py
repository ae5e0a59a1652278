"""Where a server is: what ``--host``, ``--port`` and ``superlink`` in ``node.yaml`` may say."""

from __future__ import annotations

import ipaddress
import re

from undertow.core.errors import UserError

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def check_host(host: str) -> None:
    """Refuse what is no name or address of a host.

    Raises:
        UserError: with what to give.
    """
    what = f"--host {host!r}"
    if not host.strip():
        raise UserError(f"{what}: it is empty; give the name or address by which the nodes reach the server")
    if "/" in host:
        raise UserError(f"{what}: it is an address of a page; give the host's name alone, such as server.example.org")
    if ":" in host:
        if re.fullmatch(r"[^:]+:\d+", host):
            raise UserError(f"{what}: it holds a port; give the name alone, and --port {host.rpartition(':')[2]}")
        raise UserError(f"{what}: the server listens on IPv4 alone; give a name, or an address such as 192.0.2.7")
    if not host.isascii():
        raise UserError(f"{what}: a certificate takes ASCII alone; give the name as its xn-- form{_punycode(host)}")
    if re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError as error:
            raise UserError(f"{what}: it is no IPv4 address ({error}); give four numbers up to 255, or a name") from error
    elif len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise UserError(f"{what}: a name has letters, digits, '-' and '.' alone; give one such as server.example.org")


def check_address(superlink: str) -> str:
    """Return ``HOST:PORT`` as it is.

    Raises:
        ValueError: it is none.
    """
    host, _, port = superlink.rpartition(":")
    if not host or re.search(r"[\s/]", host) or not re.fullmatch(r"\d{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("give HOST:PORT, such as server.example.org:9443")
    return superlink


def _punycode(host: str) -> str:
    try:
        return f", {host.encode('idna').decode()}"
    except UnicodeError:
        return ""
