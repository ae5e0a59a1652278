"""What a run assumes, told from what it really makes: the threat card."""

from __future__ import annotations

from undertow.config import Config
from undertow.defenses.base import Defense
from undertow.federation.resolve import Federation
from undertow.runs.threat import DefenseView, Party, ThreatCard

#: By kind of defense, where it works and what it may see; docs/architecture.md has the same in full.
SEES = {
    "data": "each client before round 1: its own samples, the frozen model, how all train; the server: sums of counts alone",
    "loss": "each client: its own samples as tokens, the frozen model, in a round the global state it was sent",
    "pre-aggregator": "the server in each round: the updates, the samples that clients say they have, the global state",
    "aggregator": "the server in each round: the updates, the samples that clients say they have, the global state",
    "server": "the server in each round: the new global state, the round's updates, the frozen model",
    "decoding": "whoever uses the tuned model: prompts, the model before and after tuning",
}
_SUM = " (secure aggregation: the sum of the updates alone)"


def card(config: Config, federation: Federation) -> ThreatCard:
    """Return the card of a run whose task is made and whose poison is planted."""
    task, attack, options = federation.task, federation.attack, config.attack
    holders = sorted(task.poisoned)
    malicious = holders if attack is not None and attack.malicious else []
    backdoor, counts = config.backdoor, task.poison_counts
    return ThreatCard.model_validate(
        {
            "attack": options.kind,
            "trigger": backdoor.trigger,
            "target": getattr(backdoor, "target", None),
            "clients": len(task.sizes),
            "malicious": malicious,
            "poisoned": [] if malicious else holders,
            "rho": len(holders) / len(task.sizes),
            "rho_asked": options.client_share,
            "poison_ratio": options.poison_ratio if options.poison_count is None else None,
            "poison_count": options.poison_count,
            "scope": options.scope,
            **{name: counts[name] for name in ("samples", "total", "synthetic", "synthetic_total", "unknown") if name in counts},
            "rounds": options.rounds,
            "start": options.start,
            "parties": _parties(config, federation, holders, malicious),
            "defenses": [_view(name, defense, config) for name, defense in federation.defenses],
        }
    )


def _parties(config: Config, federation: Federation, holders: list[int], malicious: list[int]) -> list[Party]:
    others = sorted(set(range(len(federation.task.sizes))).difference(holders))
    attack, secure = federation.attack, config.federation.secure_aggregation
    parties = []
    if malicious:
        knows = "the global state, the round, how many take part, what an update counts for, their data; all are one attacker"
        parties.append(
            Party(
                who="malicious clients",
                clients=malicious,
                knows=knows,
                does="send what they want in the rounds of the attack",
            )
        )
    elif holders:
        parties.append(
            Party(
                who="poisoned clients",
                clients=holders,
                knows="their own data, and not that it holds poison",
                does="train as all others do; whoever planted the poison sees nothing of the federation",
            )
        )
    if attack is not None and attack.of_server:
        knows = "how the server asks for synthetic data, trigger and target"
        parties.append(Party(who="attacker of the generator", knows=knows, does="puts poison into the server's synthetic data"))
    if others:
        knows = "their own data, the global state they are sent"
        parties.append(Party(who="benign clients without poison", clients=others, knows=knows, does="train"))
    told = "the sum of a round's updates alone" if secure else "each client's update"
    server = f"{told}, the samples that clients say they have; no data, and not who is poisoned"
    parties.append(Party(who="server", knows=server, does="aggregates honestly"))
    return [*parties, Party(who="metrics", knows="the ground truth", does="measure, and tell no defense")]


def _view(name: str, defense: Defense, config: Config) -> DefenseView:
    kinds = list(dict.fromkeys(defense.kinds()))
    secure = config.federation.secure_aggregation
    sees = [f"{SEES[kind]}{_SUM if secure and SEES[kind].startswith('the server') else ''}" for kind in kinds]
    return DefenseView(name=name, kinds=kinds, sees=sees)
