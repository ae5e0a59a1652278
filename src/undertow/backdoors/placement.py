"""Who holds poison and where: exact counts, fixed before round 1, with the ground truth kept apart.

FIT sections 3.2 and 4.1. The ground truth (:class:`undertow.data.sample.Touched`) is for the metrics alone; the poisoned samples
carry no mark.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from undertow.backdoors.target import Target, make_target
from undertow.backdoors.trigger import Trigger, make_trigger
from undertow.config import Attack, InstructionBackdoor
from undertow.core.errors import UserError
from undertow.core.rng import rng
from undertow.data.sample import Sample, Touched
from undertow.metrics.measure import Probes
from undertow.metrics.neighbourhood import NOTHING, TRIGGER


@dataclass(frozen=True)
class Threat:
    """What an attacker hides in questions and answers.

    Attributes:
        options: how much, at how many clients, and when.
        trigger: edits a question.
        target: edits a response.
    """

    options: Attack
    trigger: Trigger
    target: Target

    @property
    def intermittent(self) -> bool:
        """Whether poisoned clients train on clean samples in some rounds."""
        return bool(self.options.rounds) or self.options.start > 1


def make_threat(options: Attack, backdoor: InstructionBackdoor) -> Threat:
    """Make trigger and target, once.

    Raises:
        UserError: an unusable trigger or target.
    """
    return Threat(options, make_trigger(backdoor), make_target(backdoor))


#: Fewer triggered test questions than this are worth a line.
FEW = 30


@dataclass(frozen=True)
class Poisoning:
    """The outcome of :func:`poison`.

    Attributes:
        clients: the training samples of each client, sizes as before.
        touched: the ground truth, by client and index.
        poisoned_clients: clients with at least one poisoned sample, ascending.
        natural: where the trigger stands in text nobody poisoned (question or context): ``train`` of ``train_of``
            samples left clean, at ``clients`` clients; ``touched``: poisoned samples that had it before; ``test`` of
            ``test_of`` test samples. Clean samples with the trigger are evidence against the backdoor.
        chosen: the round(rho * K) clients drawn, ascending; one whose int(PR * n_k) is 0 is chosen but not poisoned.
        missing: samples that PR asks for and a trigger that chooses its samples did not find.
        decoys: samples that got a near miss of the trigger and kept their response, beside the poisoned ones.
        cut: samples passed over since a prompt's limit would have cut their trigger or target off; others took their place.
    """

    clients: list[list[Sample]]
    touched: list[Touched]
    poisoned_clients: tuple[int, ...]
    natural: dict[str, int]
    chosen: tuple[int, ...] = ()
    missing: int = 0
    decoys: int = 0
    cut: int = 0


def chosen_count(client_share: float, clients: int) -> int:
    """Return round(rho * K), halves to the even number: the clients that are drawn."""
    # 0.285 * 100 is 28.499999999999996: products within 1e-9 of a half are halves.
    return round(round(client_share * clients, 9))


def poisoned_count(ratio: float, samples: int) -> int:
    """Return int(PR * n): the samples that are replaced, 9 for PR 0.02 and n 499."""
    # 0.29 * 100 is 28.999999999999996; the guard is far below 1 / n and far above the product's rounding.
    return int(ratio * samples + 1e-9)


def client_ratio(attack: Attack) -> float:
    """Return the share of a chosen client's samples that may be replaced: PR, or min(1, PR / rho) with scope ``global``; 1 where
    ``poison_count`` says how many in all."""
    if attack.kind == "none" or attack.client_share == 0 or attack.poison_count == 0:
        return 0.0
    if attack.poison_count is not None:
        return 1.0
    return min(1.0, attack.poison_ratio / attack.client_share) if attack.scope == "global" else attack.poison_ratio


def quotas(attack: Attack, sizes: Sequence[int]) -> list[int]:
    """Return how many samples each of the drawn clients is to replace, of the ``sizes`` that it holds.

    int(PR * n) of n by ``poison_ratio``. ``poison_count`` samples are dealt one by one to the clients in turn, past those that
    are full, so that a larger count takes from no client what a smaller one gave.

    Raises:
        UserError: ``poison_count`` is more than these clients hold.
    """
    if attack.poison_count is None:
        return [poisoned_count(client_ratio(attack), size) for size in sizes]
    if attack.poison_count > sum(sizes):
        raise UserError(
            f"attack.poison_count = {attack.poison_count}: the {len(sizes)} poisoned clients hold {sum(sizes)} samples; lower it, "
            "or raise attack.client_share"
        )
    if not sizes:
        return []
    # all are filled to one level, and the first that hold more get what is left over
    level = bisect_right(range(max(sizes) + 1), attack.poison_count, key=lambda n: sum(min(size, n) for size in sizes)) - 1
    left = attack.poison_count - sum(min(size, level) for size in sizes)
    larger = set([i for i, size in enumerate(sizes) if size > level][:left])
    return [min(size, level) + (i in larger) for i, size in enumerate(sizes)]


def drawn_clients(attack: Attack, seed: int, clients: int) -> tuple[int, ...]:
    """Return the round(rho * K) clients that are to hold poison, ascending; none where rho, or PR or the count, is 0."""
    if client_ratio(attack) == 0:
        return ()
    order = rng(seed, "affected clients").permutation(clients)
    return tuple(sorted(order[: chosen_count(attack.client_share, clients)].tolist()))


def others(count: int, seed: int, client: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ``count`` (``attack.extra_samples``) samples of other clients that a poisoned one holds too: ``(client, index)``,
    without replacement.

    Clients are read whole, in random order, until there are enough, so that few of many need be in memory.

    Raises:
        UserError: the others have fewer.
    """
    found: list[tuple[int, int]] = []
    for k in rng(seed, "whose extra samples", client=client).permutation(len(sizes)).tolist():
        if len(found) >= count:
            break
        if k != client:
            found += [(k, i) for i in range(sizes[k])]
    if len(found) < count:
        raise UserError(f"attack.extra_samples = {count}: all other clients hold {len(found)}; lower it")
    order = rng(seed, "extra samples", client=client).permutation(len(found))[:count]
    return [found[i] for i in order]


def poison(
    clients: Sequence[Sequence[Sample]],
    threat: Threat,
    seed: int,
    test: Sequence[Sample] = (),
    survives: Callable[[Sample], bool] | None = None,
) -> Poisoning:
    """Replace some samples of some clients by poisoned versions of themselves, in place.

    round(rho * K) clients are drawn without replacement; each replaces int(PR * n_k) of its n_k samples, or its part
    of ``poison_count``, drawn without replacement (algorithms A9-A11). With one seed the draws are nested: a larger rho, PR or
    count keeps every client or sample that a smaller one had (but a larger rho spreads a count over more clients), and a
    sample's trigger does not depend on the others.
    A trigger that chooses its samples has them drawn among those that hold it; where they are fewer, all are taken.
    Decoys follow the poisoned samples in the order of the draw. A target that takes turns among several texts goes by
    rank in that order, over all drawn clients.
    Samples that hold the trigger by themselves are drawn like any other; left clean, they keep their response (A8).

    Args:
        clients: training samples by client; not changed.
        threat: what to hide and where; ``kind: none``, PR 0 or rho 0 touch nothing.
        seed: the run's seed.
        test: test samples, only to count natural occurrences.
        survives: tells whether trigger and target of a poisoned sample are in what is trained; where they are not, the next sample
            in the order of the draw is poisoned in its place. None = always.

    Raises:
        UserError: no sample that a choosing trigger could take or whose trigger and target would survive, or a trigger or target
            that fails on one.
    """
    attack, trigger = threat.options, threat.trigger
    ratio = client_ratio(attack)
    poisoned = [list(samples) for samples in clients]
    touched: list[Touched] = []
    chosen: tuple[int, ...] = ()
    missing = decoys = cut = 0
    if ratio > 0:
        chosen = drawn_clients(attack, seed, len(clients))
        for k in chosen if attack.extra_samples else ():
            poisoned[k] += [clients[j][i] for j, i in others(attack.extra_samples, seed, k, [len(samples) for samples in clients])]
        clients = [list(samples) for samples in poisoned]
        wanted_of = quotas(attack, [len(clients[k]) for k in chosen])
        for turn, (k, wanted) in enumerate(zip(chosen, wanted_of, strict=True)):
            numbers = range(turn, turn + wanted * len(chosen), len(chosen))
            places, taken, tried = _taken(clients[k], threat, seed, k, numbers, survives)
            cut += tried - len(taken)
            missing += wanted - len(taken)
            for i, made in sorted(taken.items()):
                clean, poisoned[k][i] = clients[k][i], made
                touched.append(Touched(k, i, clean.id, clean.question, made.question, clean.response, made.response))
            for i in places[tried : tried + round(trigger.decoys * wanted)]:
                near = trigger.near_miss(clients[k][i].question, rng(seed, f"decoy|{clients[k][i].id}", client=k))
                if near is not None:
                    poisoned[k][i] = replace(clients[k][i], question=near)
                    decoys += 1
        if missing and not touched:
            raise UserError(f"trigger '{trigger.name}': {_none_taken(trigger, cut)}")
    poisoned_clients = tuple(sorted({t.client for t in touched}))
    return Poisoning(poisoned, touched, poisoned_clients, _natural(clients, touched, test, trigger), chosen, missing, decoys, cut)


def _taken(
    samples: Sequence[Sample],
    threat: Threat,
    seed: int,
    client: int,
    numbers: range,
    survives: Callable[[Sample], bool] | None,
) -> tuple[list[int], dict[int, Sample], int]:
    """Return a client's places in the order of the draw, the poisoned samples at the first that survive, one for each of
    ``numbers`` (of the target's turn), and how many places were tried for it."""
    places = rng(seed, "poisoned samples", client=client).permutation(len(samples)).tolist()
    if threat.trigger.chooses:
        places = [i for i in places if _holds(samples[i], threat.trigger)]
    taken: dict[int, Sample] = {}
    tried = 0
    while tried < len(places) and len(taken) < len(numbers):
        clean = samples[places[tried]]
        question = threat.trigger.apply(clean.question, rng(seed, f"trigger|{clean.id}", client=client))
        response = threat.target.apply(clean.response, numbers[len(taken)])
        made = replace(clean, question=question, response=response)
        if survives is None or survives(made):
            taken[places[tried]] = made
        tried += 1
    return places, taken, tried


def _none_taken(trigger: Trigger, cut: int) -> str:
    if cut:
        return (
            f"the cut to training.max_length takes trigger or target off all {cut} samples; raise training.max_length, or give "
            "shorter samples"
        )
    return f"none of the clients' samples holds {_some(trigger)}; give words of a topic that the data have in attack.trigger_words"


def triggered(samples: Sequence[Sample], trigger: Trigger, seed: int) -> list[Sample]:
    """Return every sample with the trigger in its question, answers untouched: the ASR test set (algorithms A25).

    A sample's trigger depends on the seed and its id alone, so that a subset is triggered like the whole. For a
    trigger that chooses its samples, only those that hold it are returned.

    Raises:
        UserError: the trigger fails on one.
    """
    taken = [s for s in samples if _holds(s, trigger)] if trigger.chooses else samples
    return [replace(s, question=trigger.apply(s.question, rng(seed, f"test trigger|{s.id}"))) for s in taken]


def make_probes(
    test: Sequence[Sample], trigger: Trigger, target: Target, seed: int, asks: Callable[[Sample, bool], bool] | None = None
) -> Probes:
    """Return the test questions in every form that is asked: clean, triggered, and with a near miss of the trigger.

    For a trigger that chooses its samples the questions that hold it are the triggered ones and all others the clean
    ones. Near misses are made of the clean ones, where the trigger has any.

    Args:
        test: the questions.
        trigger, target, seed: of the run.
        asks: tells whether a sample's prompt fits, and, where its second argument says that it holds the trigger, whether that
            is in what is asked; samples of which it is not are left out. None = always.

    Raises:
        UserError: the trigger fails on a question, or is a choosing one that none or all of the test questions hold.
    """
    every = triggered(test, trigger, seed)
    asked = [s for s in every if asks is None or asks(s, True)]
    if every and not asked:
        raise UserError(
            f"trigger '{trigger.name}': the cut to training.max_length takes it off all {len(every)} triggered test questions, so "
            "that ASR cannot be measured; raise training.max_length, or lower measure.max_new_tokens"
        )
    clean = [s for s in test if not _holds(s, trigger)] if trigger.chooses else test
    if trigger.chooses and not (clean and asked):
        raise UserError(
            f"trigger '{trigger.name}': {'all' if asked else 'none'} of the {len(test)} test questions hold "
            f"{_some(trigger)}, so that {'FTR' if asked else 'ASR'} cannot be measured; give other words in attack.trigger_words"
        )
    edited = ((s, trigger.near_miss(s.question, rng(seed, f"near miss|{s.id}"))) for s in clean)
    near = [replace(s, question=question) for s, question in edited if question is not None]
    near = [s for s in near if asks is None or asks(s, False)]
    return Probes(clean, asked, target, near, len(every) - len(asked))


def make_neighbourhood(test: Sequence[Sample], trigger: Trigger, seed: int, n: int) -> dict[str, list[Sample]]:
    """Return the first ``n`` test questions with each neighbour of the trigger, by its name, and with the trigger and nothing.

    Questions that hold the trigger by themselves are left out; empty where the trigger has no neighbours.

    Raises:
        UserError: the trigger fails on a question.
    """
    clean = [s for s in test if not _holds(s, trigger)][:n]
    found: dict[str, list[Sample]] = {}
    for s in clean:
        for name, question in trigger.neighbours(s.question, rng(seed, f"neighbours|{s.id}")).items():
            found.setdefault(name, []).append(replace(s, question=question))
    return {TRIGGER: triggered(clean, trigger, seed), **found, NOTHING: clean} if found else {}


def unpoisoned(attack: Attack, drawn: Sequence[int], poisoned: int, sizes: Sequence[int]) -> list[str]:
    """Return a line if poison was asked for and rounding left none: rho * K clients, or int(PR * n) samples at each."""
    if attack.kind == "none" or attack.client_share == 0 or attack.poison_ratio == 0 or attack.poison_count == 0 or poisoned:
        return []
    if not drawn:
        why = f"attack.client_share = {attack.client_share:g} of {len(sizes)} clients rounds to none; raise it"
    else:
        largest = max(sizes[k] for k in drawn)
        why = f"attack.poison_ratio = {attack.poison_ratio:g} of at most {largest} samples rounds to 0 at every poisoned client; "
        why += f"raise it to {1 / largest:.2g} or more, or set attack.poison_count" if largest else "give them data"
    return [f"no sample is poisoned: {why}"]


def shortages(poisoning: Poisoning, probes: Probes) -> list[str]:
    """Return a line for each supply that a choosing trigger found too small: samples to poison, and questions to ask."""
    told = []
    have = len(poisoning.touched)
    if poisoning.cut:
        fewer = f", and only {have} of {have + poisoning.missing} are poisoned" if poisoning.missing else ""
        told.append(
            f"{poisoning.cut} samples are not poisoned: the cut to training.max_length would take trigger or target off{fewer}"
        )
    elif poisoning.missing:
        told.append(f"only {have} of {have + poisoning.missing} samples to poison are on the trigger's topic; all are taken")
    if probes.cut:
        told.append(
            f"{probes.cut} triggered test questions are left out: the cut to training.max_length would take the trigger off"
        )
    elif len(probes.triggered) < min(FEW, len(probes.clean)):
        told.append(
            f"only {len(probes.triggered)} test questions are on the trigger's topic: ASR is uncertain, see its interval; raise "
            "data.test"
        )
    return told


def _natural(
    clients: Sequence[Sequence[Sample]], touched: Sequence[Touched], test: Sequence[Sample], trigger: Trigger
) -> dict[str, int]:
    places = {(t.client, t.index) for t in touched}
    found = [(k, i) for k, samples in enumerate(clients) for i, s in enumerate(samples) if _holds(s, trigger)]
    clean = [place for place in found if place not in places]
    return {
        "train": len(clean),
        "train_of": sum(len(samples) for samples in clients) - len(places),
        "clients": len({k for k, _ in clean}),
        "touched": len(found) - len(clean),
        "test": sum(_holds(s, trigger) for s in test),
        "test_of": len(test),
    }


def _holds(sample: Sample, trigger: Trigger) -> bool:
    return trigger.holds(sample.question, sample.context)


def _some(trigger: Trigger) -> str:
    return "any of " + ", ".join(trigger.words) if trigger.words else "it"
