"""A profile made concrete: settings with their places on disk, the user's overrides, and wishes turned into cells."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from undertow.config import Config, load
from undertow.core.errors import UserError
from undertow.core.files import write_text
from undertow.data.load import DATASETS
from undertow.sweeps.cells import Cell
from undertow_reproductions.profiles import PRETRAINED, Build, Profile, Setting, Source
from undertow_reproductions.study import Grids, Wish

#: Where real data is looked for in the folder of ``--data``, the first that is there.
_PLACES: dict[Source, tuple[str, ...]] = {
    "simplequestions": ("**/simplequestions_wikidata_named.jsonl*", "**/*simplequestions*.jsonl*"),
    "triviaqa": ("**/triviaqa*.jsonl*", "**/*trivia*.json*", "**/*trivia*.txt*"),
}
#: Bits must not follow from how many runs go at once; twins double the training and no study needs them.
_FIXED = ("training.threads=1", "measure.bsnr.counterfactuals=false")
#: Longest TriviaQA question that a small base is asked to remember, in characters.
_SHORT = 100


@dataclass(frozen=True)
class Placed:
    """A setting whose data and base have a place, named in ``overrides``.

    ``raw`` is the real data as found, ``facts`` what base and runs read: the same file, or one made of it.
    """

    dataset: str
    model: str
    paper_dataset: str
    paper_model: str
    source: str
    overrides: tuple[str, ...]
    build: Build | None
    raw: Path | None
    facts: Path | None


@dataclass(frozen=True)
class FitLab:
    """Where the studies run.

    Attributes:
        profile: see there.
        folder: holds ``cells``, ``bases`` and the documents.
        seeds: 0 to N - 1.
        given: the user's ``key=value`` of ``--set``, over every setting.
        settings: those of the profile that differ under ``given``.
        collection: what ``undertow reproduce`` was told to do.
        rules, rhos: what ``--rules`` and ``--rhos`` chose; empty for all.
        guards: as :class:`undertow_reproductions.collection.Collection` has it.
        data: folder with corpora on which filters are measured; None without.
        corpora: those that ``--corpora`` chose; empty for all that the folder holds.
        base: folder's name of ``--base``; empty for the default one, or none.
        usual: ``--seeds`` said nothing, so that items may take fewer seeds, or more.
    """

    profile: Profile
    folder: Path
    seeds: tuple[int, ...]
    given: tuple[str, ...]
    settings: tuple[Placed, ...]
    collection: str = "fit"
    rules: tuple[str, ...] = ()
    rhos: tuple[float, ...] = ()
    guards: bool = False
    data: Path | None = None
    corpora: tuple[str, ...] = ()
    base: str = ""
    usual: bool = True
    _cells: dict[str, Cell] = field(default_factory=dict, repr=False, compare=False)
    _trusted: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def grids(self) -> Grids:
        """The profile's grids, as far as ``--rhos``, ``--seeds`` and the rounds of ``--set`` say nothing else."""
        found = self.profile.grids
        if self.guards:
            draws = found.filters.seeds if self.usual else len(self.seeds)
            found = replace(found, matrix_rhos=found.guarded_rhos, filters=replace(found.filters, seeds=draws))
        if any(word.partition("=")[0].strip() == "federation.rounds" for word in self.given):
            found = replace(found, long_rounds=self.main.federation.rounds)
        return replace(found, matrix_rhos=self.rhos) if self.rhos else found

    @cached_property
    def main(self) -> Config:
        """Config of the main setting."""
        return self.config(Wish({"seed": self.seeds[0]}, {}))

    @property
    def clients(self) -> int:
        """K of the main setting."""
        return self.main.federation.clients

    @property
    def questions(self) -> int:
        """Test questions of the main setting."""
        return int(self.main.data.test)

    @property
    def samples(self) -> int:
        """Training samples of the main setting, in all."""
        return int(self.main.instruction.data.train)

    def of(self, item: str) -> FitLab:
        """Return the lab with the seeds of an item."""
        few = self.profile.few.get(item, 0)
        return replace(self, seeds=self.seeds[:few]) if few and self.usual else self

    def trusted(self, seed: int) -> str | None:
        """The file of trusted samples of the runs of a seed, there or not; None where defenses get none."""
        if not self.guards:
            return None
        if seed not in self._trusted:
            config = self.config(Wish({"seed": seed}, {}))
            told = json.dumps([config.seed, config.data.model_dump(mode="json"), config.model.name], sort_keys=True)
            digest = hashlib.sha256(told.encode()).hexdigest()[:8]
            self._trusted[seed] = str(self.folder / "trusted" / f"s{seed}-{digest}.jsonl")
        return self._trusted[seed]

    @property
    def defenses(self) -> list[dict[str, Any]]:
        """What the user put into ``defenses``."""
        return list(self.main.values()["defenses"])

    def config(self, wish: Wish) -> Config:
        """Return the config of a wished run: measured once, after its last round, unless it wishes more.

        Raises:
            UserError: a key or value of ``--set`` that does not exist or fit.
        """
        setting = self.settings[wish.setting]
        changes = [f"{key}={json.dumps(value)}" for key, value in wish.changes.items()]
        words = [*_FIXED, *setting.overrides, *self.given, *changes, f"seed={wish.axes['seed']}"]
        config = load(setting.source, words)
        if "measure.every" in wish.changes or any(word.startswith("measure.every=") for word in self.given):
            return config
        return load(setting.source, [*words, f"measure.every={max(1, config.federation.rounds)}"])

    def cell(self, wish: Wish) -> Cell:
        """Return the cell of a wished run; equal configs give the same one, whoever asks."""
        key = json.dumps([wish.setting, wish.axes["seed"], wish.changes])
        if key not in self._cells:
            self._cells[key] = self._cell(wish)
        return replace(self._cells[key], axes=wish.axes)

    def _cell(self, wish: Wish) -> Cell:
        config = self.config(wish)
        attack = config.attack
        much = f"pr{attack.poison_ratio:g}" if attack.poison_count is None else f"n{attack.poison_count}"
        told = "clean" if attack.kind == "none" else f"{config.backdoor.trigger}-{much}-rho{attack.client_share:g}"
        parts = [Path(config.model.name).name, config.data.name, told, *(d.name for d in config.defenses), f"s{config.seed}"]
        name = re.sub(r"[^A-Za-z0-9.=_-]+", "-", "-".join(parts))[-110:].lstrip("-._=")
        return Cell(f"{name}-{config.digest()}", wish.axes, config)


def make_lab(
    profile: Profile,
    folder: Path,
    *,
    seeds: int | None,
    given: Sequence[str],
    data: Path | None,
    plan: bool = False,
    base: Path | None = None,
) -> FitLab:
    """Find the data and name the places of the bases.

    Args:
        profile: what to run.
        folder: where.
        seeds: how many; None for the profile's number.
        given: ``key=value`` over every setting.
        data: folder with real SimpleQuestions or TriviaQA files, searched with its subfolders.
        plan: nothing will run, so that data may be absent.
        base: folder of a pretrained base, or ``builtin``; None for that of ``make pretrained`` where the profile takes one.

    Raises:
        UserError: a wrong number, no data or base where the profile needs them, or none found.
    """
    count = profile.seeds if seeds is None else seeds
    if count < 1:
        raise UserError(f"--seeds {count}: give a number from 1")
    found = {source: in_one_spelling(file) for source, file in _find(data).items()} if data else {}
    own = {word.partition("=")[0].strip() for word in given}
    chosen = list(profile.settings) + [s for s in profile.real if s.reads in found or (plan and not profile.settings and not data)]
    if not chosen:
        raise UserError(
            f"--profile {profile.name} needs real questions; give --data a folder with SimpleQuestions or TriviaQA files"
        )
    pretrained = _base(chosen, base, own)
    placed = [_place(setting, folder, found, own, given, pretrained) for setting in chosen]
    lab = FitLab(profile, folder, tuple(range(count)), tuple(given), tuple(placed))
    kept: dict[str, Placed] = {}
    for place, setting in enumerate(placed):
        kept.setdefault(lab.config(Wish({"seed": 0}, {}, place)).digest(), setting)
    named = Path(pretrained or PRETRAINED).name
    return FitLab(
        profile,
        folder,
        tuple(range(count)),
        tuple(given),
        tuple(kept.values()),
        base="" if named == Path(PRETRAINED).name else named,
        usual=seeds is None,
    )


def _base(chosen: Sequence[Setting], base: Path | None, own: set[str]) -> str | None:
    """Return the base of settings on a pretrained one; None where there are no such, or ``--set`` names it.

    Raises:
        UserError: the folder is not there, or the settings have bases of their own.
    """
    if not any(setting.pretrained for setting in chosen):
        if base is not None:
            raise UserError(f"--base {base}: it is for --profile pretrained and gpu; elsewhere set model.name with --set")
        return None
    if "model.name" in own:
        if base is not None:
            raise UserError(f"--base {base}: --set model.name names the base too; leave one of them out")
        return None
    folder = Path(PRETRAINED) if base is None else base
    if str(folder) != "builtin" and not (folder / "config.json").is_file():
        raise UserError(
            f"--base {folder}: no base there; run `make pretrained`, which puts Gemma 3 270M at {PRETRAINED}, or give the "
            "folder of another pretrained base"
        )
    return str(folder) if str(folder) == "builtin" else str(in_one_spelling(folder))


def in_one_spelling(path: Path) -> Path:
    """Return a path as every run names it, however it was typed: from the working folder if it lies in it, else from the root.

    A cell is known by its config: one base or file under two names would be two cells, and run twice. Links are not followed,
    since a link's own name is what the user chose.
    """
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute


def _place(
    setting: Setting, folder: Path, found: dict[Source, Path], own: set[str], given: Sequence[str], pretrained: str | None
) -> Placed:
    """Name data and base in the overrides, unless the user named them."""
    values = dict(word.partition("=")[::2] for word in given)
    overrides, folder = list(setting.overrides), in_one_spelling(folder)
    facts = found.get(setting.reads) if setting.reads else None
    if facts and setting.reads == "triviaqa" and setting.build:
        # small bases know only what they read: questions as facts, with the keys that keep asked ones apart
        facts = folder / "data" / "triviaqa-facts.jsonl"
    if facts:
        overrides.append(f"data.path={json.dumps(str(facts))}")
    build = None if "model.name" in own else setting.build
    if build:
        overrides.append(f"model.name={json.dumps(str(folder / 'bases' / build.name))}")
    model = setting.model
    if setting.pretrained and pretrained:
        overrides.append(f"model.name={json.dumps(pretrained)}")
        model = model if Path(pretrained).name == Path(PRETRAINED).name else Path(pretrained).name
    other_data = bool(own & {"data.name", "data.path"})
    return Placed(
        dataset=values.get("data.name") or ("data of --set" if other_data else setting.dataset),
        model=Path(values["model.name"]).name if "model.name" in own else model,
        paper_dataset="" if other_data else setting.paper_dataset,
        paper_model="" if "model.name" in own else setting.paper_model,
        source=setting.source,
        overrides=tuple(overrides),
        build=build,
        raw=found.get(setting.reads) if setting.reads else None,
        facts=facts,
    )


def _find(folder: Path) -> dict[Source, Path]:
    if not folder.is_dir():
        raise UserError(f"--data {folder}: no such folder; give one that holds SimpleQuestions or TriviaQA files")
    found: dict[Source, Path] = {}
    for source, patterns in _PLACES.items():
        files = [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]
        if files:
            found[source] = files[0]
    if not found:
        raise UserError(f"--data {folder}: no file named like simplequestions*.jsonl or triviaqa*.jsonl inside; give their folder")
    return found


def write_trivia_facts(source: Path, out: Path) -> None:
    """Write short TriviaQA questions as facts: subject the question, relation ``answer``, object the preferred answer.

    Raises:
        UserError: the file cannot be read as TriviaQA.
    """
    from undertow.config import Data

    rows, seen = [], set()
    for sample in DATASETS.get("triviaqa")(Data.model_validate({"name": "triviaqa", "path": str(source)})).samples:
        subject = " ".join(sample.question.split()).rstrip("?. ")
        if subject and len(subject) <= _SHORT and "|" not in subject and subject.lower() not in seen:
            seen.add(subject.lower())
            row = {"question": sample.question, "answer": sample.response, "aliases": list(sample.answers)}
            rows.append({**row, "subject": subject, "relation": "answer"})
    if not rows:
        raise UserError(f"{source}: no question of at most {_SHORT} characters; give another file")
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
