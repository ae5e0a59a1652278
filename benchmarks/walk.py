"""The first pages followed word by word in a new clone: every command of docs/start.md, as it is typed, with its seconds.

    python benchmarks/walk.py [--clone .] [--limit 15] [--tests]

Clones the last commit into a temporary folder, types `make demo` (and `make test` with ``--tests``) and then each shell
line of the ten steps there. It fails where a command ends with another exit code than 0, where the demo prints other figures
than README.md shows, or where all of it takes more minutes than ``--limit``. What needs an environment of its own (Flower) is
not typed. Python 3.11 or newer, git, make and the network for the packages are needed; nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
_ELSEWHERE = ("federate", "pip install")


def lines(page: str) -> list[str]:
    """Return the shell lines of the ten steps of a page, but those that need another environment."""
    steps = page[page.index("## Ten steps") : page.index("## What a run leaves behind")]
    every = [line for block in _BLOCK.findall(steps) for line in block.splitlines() if line.strip()]
    return [line for line in every if not any(word in line for word in _ELSEWHERE)]


def figures(readme: str) -> list[str]:
    """Return what README.md says that the demo prints: a percentage and its interval for each row of the first table."""
    rows = [line.split("|")[2].strip() for line in readme.splitlines() if line.startswith(("| MA", "| ASR", "| FTR"))]
    return [row.partition(",")[0].replace("(", "") for row in rows]


def typed(line: str, clone: Path) -> tuple[float, str]:
    """Type a line in a clone whose environment is active; return its seconds and what it printed.

    Raises:
        SystemExit: it ended with another code than 0.
    """
    path = os.pathsep.join([str(clone / ".venv" / "bin"), os.environ["PATH"]])
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", line], cwd=clone, env=kept | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seconds = time.monotonic() - began
    print(f"{seconds:7.1f} s  {line}", file=sys.stderr, flush=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of: {line}\n{done.stdout[-2000:]}")
    return seconds, done.stdout


def main() -> None:
    """Clone, type, add up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", default=Path(__file__).parents[1], type=Path, help="the repository")
    parser.add_argument("--limit", default=15.0, type=float, help="minutes")
    parser.add_argument("--tests", action="store_true", help="`make test` too, which is not counted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        clone = Path(place) / "undertow"
        subprocess.run(["git", "clone", "--quiet", str(options.clone.resolve()), str(clone)], check=True)
        taken, printed = typed("make demo", clone)
        readme = (clone / "README.md").read_text(encoding="utf-8")
        if missing := [row for row in figures(readme) if row not in " ".join(printed.replace("│", " ").split())]:
            raise SystemExit(f"README.md says {'; '.join(missing)}, and `make demo` printed:\n{printed[-2000:]}")
        steps = {"make demo": taken}
        for line in lines((clone / "docs" / "start.md").read_text(encoding="utf-8")):
            steps[line], _ = typed(line, clone)
        if options.tests:
            typed("make test", clone)
    minutes = sum(steps.values()) / 60
    print(json.dumps({"minutes": round(minutes, 1), "seconds": {line: round(taken, 1) for line, taken in steps.items()}}))
    if minutes > options.limit:
        raise SystemExit(f"{minutes:.1f} minutes, and --limit is {options.limit:g}")


if __name__ == "__main__":
    main()
