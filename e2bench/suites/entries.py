"""From a suite's file to its runs: every model × every experiment that is for it, all settings checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2bench.errors import E2BenchError, UnknownName
from e2bench.experiments.base import EXPERIMENTS, Experiment, experiment
from e2bench.experiments.options import Common
from e2bench.marked import Marked, check_keys
from e2bench.settings import flag
from e2bench.suites.file import SuiteFile, read_file
from e2bench.suites.trainings import FOLDER, OF_A_TRAINING, Training, read_training

TINY = "tiny"  # the embedded model
REPORT = "report"
OF_THE_COMMAND = ("out", "resume", "fresh", "dry_run")  # shared settings that a file cannot give
SHARED = tuple(name for name in Common.named() if name not in OF_THE_COMMAND)
OF_A_RUN = tuple(name for name in SHARED if name != "model")  # an experiment's entry has a model's name instead
NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Entry:
    """One run of a suite.

    model: its name; empty where the file leaves it to the command line.    name: of the run's folder.
    note: what is said when it begins.    line: of the experiment in the file.
    training: what makes the model, where the suite does.
    """

    model: str
    name: str
    note: str
    line: int
    experiment: Experiment
    common: Common
    training: Training | None = None

    @property
    def title(self) -> str:
        """In the plan and for `--only`."""
        return "/".join(filter(None, (self.model, self.name)))


Piece = Training | Entry


@dataclass(frozen=True)
class Rates:
    """What a machine works off a second, by experiment, and `train` in floating-point operations. machine: in words."""

    machine: str = ""
    per_second: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A suite's trainings and runs, those of a model together. out: the folder that they and the report go into.

    only: titles of the pieces that are wanted; empty: all.    rates: where no finished run tells one.
    """

    file: SuiteFile
    out: Path
    pieces: tuple[Piece, ...]
    only: frozenset[str] = frozenset()
    rates: Rates = Rates()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The runs."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Entry))

    @property
    def wanted(self) -> tuple[Piece, ...]:
        """The pieces to work off, in order."""
        return tuple(piece for piece in self.pieces if not self.only or piece.title in self.only)

    @property
    def wants_report(self) -> bool:
        """Whether a report is asked for."""
        return not self.only or REPORT in self.only


def read_suite(name: str, common: Common, values: Mapping[str, Any], only: Sequence[str] = ()) -> Suite:
    """The suite of that name, or in that file.

    common: shared options of the command line. They fill what the file leaves open, and variables of the same name.
    values: of variables.    only: pieces by title, or all of one model.
    Raises E2BenchError, one line with file and place, for every mistake that can be seen without data and models.
    """
    given = {name: value for name, value in common.given.items() if name in SHARED}
    file = read_file(name, values, given)
    options = {name: value for name, value in given.items() if name not in file.variables}
    check_keys(file.shown, file.top, "key of a suite", ("about", "needs", "rates", "models", "experiments"))
    out = common.out or Path("results") / file.name
    trainings = _trainings(file, out)
    models = _models(file, trainings)
    command = {name: value for name, value in common.given.items() if name in OF_THE_COMMAND}
    experiments = [(wanted, _for_models(file, wanted, list(models))) for wanted in _list(file, "experiments")]
    pieces: list[Piece] = []
    for model, settings in models.items():
        training = trainings.get(model)
        pieces += [training] if training else []
        for wanted, own in experiments:
            if model in own:
                merged = (options, settings, wanted, own[model])
                pieces.append(_entry(file, model, wanted, merged, {**command, "out": out}, training))
    suite = Suite(file, out, tuple(pieces), _only(pieces, only), _rates(file))
    _check_folders(file, suite.entries)
    for unused in _unused(options, suite.entries):
        raise E2BenchError(f"{flag(unused)} has no effect: every run of {file.shown} says its own {unused}")
    return suite


def _only(pieces: Sequence[Piece], names: Sequence[str]) -> frozenset[str]:
    """Titles of the pieces meant: a title itself, or a model's name, which stands for its training and its runs."""
    found: set[str] = set()
    titles = [piece.title for piece in pieces]
    for name in names:
        meant = [piece.title for piece in pieces if name in (piece.title, *_groups(piece))]
        if not meant and name != REPORT:
            groups = dict.fromkeys(group for piece in pieces for group in _groups(piece))
            raise UnknownName("piece of the suite", name, [*filter(None, groups), *titles, REPORT])
        found.update(meant or [REPORT])
    return frozenset(found)


def _groups(piece: Piece) -> tuple[str, ...]:
    return (FOLDER, piece.name) if isinstance(piece, Training) else (piece.model,)


def _rates(file: SuiteFile) -> Rates:
    """`rates:` of the file."""
    given = file.top.get("rates")
    if given is None:
        return Rates()
    if not isinstance(given, Marked) or not isinstance(given.get("machine"), str):
        line = file.top.lines["rates"]
        raise file.refuse(line, "`rates:` has `machine: NAME`, and tokens a second by experiment")
    check_keys(file.shown, given, "rate", ("machine", *EXPERIMENTS))
    per_second = {name: value for name, value in given.items() if name != "machine"}
    for name, value in per_second.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise file.refuse(given.lines[name], f"rate {name} is {value!r}; it must be a number above 0")
    return Rates(given["machine"], per_second)


def _list(file: SuiteFile, key: str) -> list[Marked]:
    """A list of mappings, not empty."""
    found = file.top.get(key)
    line = file.top.lines.get(key, file.top.line)
    if not isinstance(found, list) or not found:
        raise file.refuse(line, f"a suite needs `{key}:`, a list with at least one entry")
    for number, one in enumerate(found, 1):
        if not isinstance(one, Marked):
            raise file.refuse(line, f"entry {number} of `{key}:` is {one!r}; it must hold `key: value` pairs")
    return found


def _check_settings(file: SuiteFile, values: Marked, *settings: tuple[type, tuple[str, ...]]) -> None:
    """Refuse a value that is not possible, naming its own line. settings: classes with their names among the keys."""
    for key, value in values.items():
        for cls, names in settings:
            if key.replace("-", "_") in names:
                with file.at(values.lines[key]):
                    cls.read({key: value})  # type: ignore[attr-defined]


def _trainings(file: SuiteFile, out: Path) -> dict[str, Training]:
    """Model: its training, of those that have a recipe."""
    found = {}
    for entry in _list(file, "models"):
        if "set" in entry and "recipe" not in entry:
            raise file.refuse(entry.lines["set"], "`set:` changes a recipe; add `recipe: NAME` to this model")
        if "recipe" not in entry:
            continue
        if "model" in entry or "name" not in entry:
            raise file.refuse(entry.line, "a model with `recipe:` needs a `name:`, and no `model:`; it will be trained")
        name = _name(file, entry, "")
        found[name] = read_training(file, entry, name, out)
    return found


def _models(file: SuiteFile, trainings: Mapping[str, Training]) -> dict[str, dict[str, Any]]:
    """Name: shared settings of every model."""
    models: dict[str, dict[str, Any]] = {}
    for entry in _list(file, "models"):
        check_keys(file.shown, entry, "setting of a model", ("name", *OF_A_TRAINING, *SHARED))
        _check_settings(file, entry, (Common, SHARED))
        name = _name(file, entry, _model_name(entry))
        if name in models:
            raise file.refuse(entry.line, f"two models are called {name!r}; give one of them another `name:`")
        models[name] = {key: value for key, value in entry.items() if key not in ("name", *OF_A_TRAINING)}
        if name in trainings:
            models[name]["model"] = str(trainings[name].out)
    return models


def _model_name(entry: Marked) -> str:
    """The last part of what it is loaded from; empty where the command line says that."""
    model = entry.get("model")
    if model is None:
        return ""
    if str(model).startswith(("http://", "https://")):
        return re.sub(r"[^\w.-]+", "-", str(entry.get("served_model_name") or "served"))
    return re.sub(r"[^\w.-]+", "-", str(model).rstrip("/").rpartition("/")[2].removesuffix(".gguf")).lstrip(".-")


def _name(file: SuiteFile, entry: Marked, default: str) -> str:
    """The name of a folder."""
    name = entry.get("name", default)
    if name == "" and "name" not in entry:
        return ""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in (REPORT, FOLDER):
        line = entry.lines.get("name", entry.line)
        raise file.refuse(
            line, f"name {name!r} is not possible; give letters, digits, . _ -, and neither {REPORT} nor {FOLDER}"
        )
    return name


def _for_models(file: SuiteFile, wanted: Marked, names: list[str]) -> dict[str, Mapping[str, Any]]:
    """Model: settings that this experiment has for it alone. `models:` is a list of names or `name: settings` pairs."""
    chosen = wanted.get("models", names)
    line = wanted.lines.get("models", wanted.line)
    if not isinstance(chosen, list | dict) or not all(isinstance(name, str) for name in chosen):
        raise file.refuse(line, "`models:` of an experiment is a list of models' names, or `name: settings` pairs")
    for name in chosen:
        if name not in names:
            with file.at(line):
                raise UnknownName("model", name, [name or "(unnamed)" for name in names])
    return {name: (chosen.get(name) or {}) if isinstance(chosen, dict) else {} for name in chosen}


def _entry(
    file: SuiteFile,
    model: str,
    wanted: Marked,
    settings: tuple[Mapping[str, Any], ...],
    command: Mapping[str, Any],
    training: Training | None,
) -> Entry:
    """One run. settings: mappings of which the later ones win; names that are no settings are left out here."""
    if "experiment" not in wanted:
        raise file.refuse(wanted.line, "an entry of `experiments:` needs `experiment: NAME`")
    with file.at(wanted.lines["experiment"]):
        cls = experiment(str(wanted["experiment"]))
    own = tuple(cls.named())
    check_keys(file.shown, wanted, f"setting of {cls.name}", ("experiment", "name", "note", "models", *own, *OF_A_RUN))
    _check_settings(file, wanted, (cls, own), (Common, OF_A_RUN))
    for over in settings[3:]:
        if isinstance(over, Marked):
            check_keys(file.shown, over, f"setting of {cls.name}", (*own, *OF_A_RUN))
            _check_settings(file, over, (cls, own), (Common, OF_A_RUN))
        elif over:
            raise file.refuse(wanted.lines["models"], f"{over!r} is no setting; write `name: {{key: value}}`")
    merged = {key.replace("-", "_"): value for one in settings for key, value in one.items()}
    if merged.get("model") == TINY:
        merged["model"] = None
    name = _name(file, wanted, cls.name)
    out = command["out"] / model / name
    common = Common.read({**{key: merged[key] for key in SHARED if key in merged}, **command, "out": out})
    with file.at(wanted.line):
        made = cls.read({key: merged[key] for key in own if key in merged})
        made.check(common)
    return Entry(model, name, str(wanted.get("note") or ""), wanted.line, made, common, training)


def _check_folders(file: SuiteFile, entries: Sequence[Entry]) -> None:
    """Refuse two runs in one folder, or one inside another's."""
    seen: dict[Path, Entry] = {}
    for entry in entries:
        out = Path(str(entry.common.out))
        if out in seen or any(out in other.parents or other in out.parents for other in seen):
            raise file.refuse(entry.line, f"another run has the folder {out} too; give one of them another `name:`")
        seen[out] = entry


def _unused(options: Mapping[str, Any], entries: Sequence[Entry]) -> list[str]:
    """Options of the command line that reached no run."""
    return [name for name, value in options.items() if all(e.common.given.get(name) != value for e in entries)]
