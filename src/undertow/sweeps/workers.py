"""The processes that run a sweep's cells: fresh interpreters on this machine, or actors of a Ray cluster.

``python -m undertow.sweeps.workers`` reads one task a line from its standard input and answers each with one line. Where the
input ends, because the sweep ended or was killed, it stops at once: a run directory stands any stop.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from undertow.core.cluster import connect
from undertow.core.errors import UserError

if TYPE_CHECKING:
    from undertow.config import Model
    from undertow.models.causal_lm import CausalLM
    from undertow.sweeps.cells import Cell


class Task(TypedDict):
    """What a worker is asked: a config's plain values, the run directory, its command for the record, whether to report, and the
    folder for the untouched base's answers."""

    values: dict[str, Any]
    folder: str
    command: str
    reports: bool
    answers: str


class Answer(TypedDict):
    """What a worker answers: one line of error, or None; and the run's warnings."""

    error: str | None
    warnings: list[str]


class Runner:
    """Runs one task after another and keeps the base between them."""

    def __init__(self, place: str | None = None) -> None:
        """Go to the folder ``place``, against which a config's relative paths are read."""
        self._bases = _LastBase()
        self._place = place

    def run(self, task: Task) -> Answer:
        """Run a cell; whatever goes wrong is in the answer."""
        told = _Told()
        try:
            if self._place:
                os.chdir(self._place)
            from undertow.config import validate
            from undertow.federation.loop import run
            from undertow.runs.tracking.watch import tracked

            folder, config = Path(task["folder"]), validate(task["values"], Path(task["folder"]).name)
            self._bases.answers = Path(task["answers"])
            with tracked(config, folder, told) as looking:
                run(config, folder, looking, command=task["command"], bases=self._bases)
                if task["reports"]:
                    from undertow.runs.report.page import write_report

                    write_report(folder, Path(config.compare) if config.compare else None)
        except Exception as error:
            # Whatever state the model was left in: the next cell starts from the file.
            self._bases.forget()
            line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return {"error": " ".join(line.split())[:500] or type(error).__name__, "warnings": told.warnings}
        return {"error": None, "warnings": told.warnings}


class _LastBase:
    """Loads a base and keeps the last one; the old one goes before the new one comes, for two may not fit."""

    def __init__(self) -> None:
        self.answers: Path | None = None
        self._held: tuple[Model, CausalLM] | None = None

    def __call__(self, options: Model) -> CausalLM:
        if self._held and self._held[0] == options:
            return self._held[1]
        self.forget()
        from undertow.models.causal_lm import load_base

        base = replace(load_base(options), answers=self.answers)
        self._held = (options, base)
        return base

    def forget(self) -> None:
        import gc

        import torch

        self._held = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Told:
    """A observer that keeps the warnings; progress is read from the run directory."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def phase(self, text: str) -> None:
        """Nobody looks."""

    def warn(self, text: str) -> None:
        """Keep it for the answer."""
        self.warnings.append(text)

    def round(self, row: dict[str, Any], of: int) -> None:
        """Nobody looks."""


class LocalWorker:
    """A process of this machine, started when first needed and again after it was killed.

    It has a session of its own, so that Ctrl-C reaches the sweep alone, which then stops it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker

    def run(self, task: Task) -> Answer:
        """Run a cell and wait for its end; a process that dies is an error in the answer."""
        try:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except OSError as error:
            return {"error": f"no process could be started: {error.strerror or error}", "warnings": []}
        if line.endswith("\n"):
            answer: Answer = json.loads(line)
            return answer
        return {"error": self._ending(), "warnings": []}

    def stop(self) -> None:
        """End the process at once, and start no other."""
        with self._lock:
            self._stopped = True
            if self._process:
                self._process.kill()
                self._process.wait()
            self._errors.close()

    def _started(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._stopped:
                raise BrokenPipeError
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    # -P: files of the working folder must not stand in for modules
                    [sys.executable, "-P", "-m", "undertow.sweeps.workers"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,
                )
            return self._process

    def _ending(self) -> str:
        with self._lock:
            if self._stopped or self._process is None:
                return "stopped"
            code = self._process.wait()
            if code < 0:
                name = signal.Signals(-code).name
                why = "; often the memory was full: try fewer --jobs" if name == "SIGKILL" else ""
                return f"its process was killed ({name}){why}"
            self._errors.seek(0)
            last = self._errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            return f"its process ended with exit code {code}{': ' if last else ''}{last[:300]}"


class RayCluster:
    """A connection to Ray, made once per process."""

    def __init__(self, address: str, cells: Sequence[Cell]) -> None:
        """Connect, or start a local instance for ``local``.

        Raises:
            UserError: Ray is not installed, or nobody answers.
        """
        self.ray = connect(address)
        found = self.ray.cluster_resources()
        self._cpus = max(cell.config.training.threads or 1 for cell in cells)
        # Ray hides the GPUs from an actor that asks for none.
        self._gpus = int(found.get("GPU", 0) >= 1 and any(cell.config.model.device != "cpu" for cell in cells))
        self._has = found

    def room(self) -> int:
        """Return how many workers the cluster can hold at a time."""
        return int(self._has.get("GPU", 0) if self._gpus else self._has.get("CPU", 1) // self._cpus)

    def workers(self, count: int) -> list[RayWorker]:
        """Return that many workers; Ray places them when they are first asked."""
        kind = self.ray.remote(Runner).options(num_cpus=self._cpus, num_gpus=self._gpus)
        return [RayWorker(self.ray, kind) for _ in range(count)]


class RayWorker:
    """An actor somewhere in the cluster."""

    def __init__(self, ray: Any, kind: Any) -> None:
        self._ray, self._kind = ray, kind
        self._lock = threading.Lock()
        self._stopped = False
        self._actor: Any = None

    def run(self, task: Task) -> Answer:
        """Run a cell and wait for its end; an actor that dies is an error in the answer."""
        try:
            with self._lock:
                if self._stopped:
                    return {"error": "stopped", "warnings": []}
                self._actor = self._actor or self._kind.remote(os.getcwd())
                asked = self._actor.run.remote(task)
            answer: Answer = self._ray.get(asked)
        except self._ray.exceptions.RayError as error:
            self._actor = None
            first = str(error).strip().split("\n")[0]
            return {"error": f"{type(error).__name__}: {first}"[:500], "warnings": []}
        return answer

    def stop(self) -> None:
        """End the actor at once, and start no other."""
        with self._lock:
            self._stopped = True
            if self._actor is not None:
                self._ray.kill(self._actor)


def main() -> None:
    """Answer tasks until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            tasks.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    runner = Runner()
    while True:
        print(json.dumps(runner.run(json.loads(tasks.get()))), file=answers, flush=True)


if __name__ == "__main__":
    main()
