"""What ``undertow`` and ``python -m undertow`` run: Ctrl-C is one line from the first import on, of which there are many."""

import sys


def main() -> None:
    """Load the command line and run it."""
    try:
        from undertow.cli import main as run
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
