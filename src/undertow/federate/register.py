"""Registers public keys with a SuperLink of this machine, once it listens, all in one process.

Run as ``python -m undertow.federate.register CONNECTION PORT KEY.pub...``.
"""

from __future__ import annotations

import sys

from flwr.cli.app import app

from undertow.federate.processes import wait_for_port


def main() -> None:
    """Call ``flwr supernode register`` for each key."""
    connection, port, *keys = sys.argv[1:]
    wait_for_port(int(port), 60)
    for key in keys:
        app(["supernode", "register", key, connection], standalone_mode=False)


if __name__ == "__main__":
    main()
