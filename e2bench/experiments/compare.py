"""Two runs over the same samples: paired differences per task. Reads stored lines; no model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.experiments.base import Experiment, Sample
from e2bench.experiments.stored import damage, experiment_of
from e2bench.files import check_folder
from e2bench.runs.folder import words
from e2bench.runs.lines import RUN, names_of, read_run, stored_rows
from e2bench.scoring.statistics import interval, mean

LARGEST = 10
EQUAL = 1e-12

Samples = dict[str, dict[str, Sample]]  # task: {id: sample}


# Settings that two runs are compared over: the model, and how its window was extended. Others say what was asked, and
# a difference between answers to other questions is no difference between models.
MODEL = {
    "model", "weights", "eos", "tokenizer", "native_window", "dtype", "attention", "device",
    "batch_invariant", "threads",
}  # fmt: skip
COMPARED = {*MODEL, "window", "method", "scale", "grid", "data"}  # data: each line says what it was made from


def load(folder: Path) -> tuple[type[Experiment], Samples]:
    """(experiment, samples by task) of a run's folder, or of one in LongBench's own layout; failed lines left out.

    Raises DataError for a folder without lines, and whatever the scorer finds wrong with one.
    """
    check_folder(folder, "compare takes run folders")
    experiment = experiment_of(folder)
    samples: Samples = {}
    with damage(folder):
        for name in names_of(folder):
            for line, sample in experiment.samples(folder, name, stored_rows(folder, name), strict=True):
                if sample.score is not None:
                    made_from = line.get("sample")
                    samples.setdefault(sample.task, {})[sample.id] = replace(sample, made_from=made_from)
    if not samples:
        raise DataError(f"{folder} holds no finished line; run the experiment first")
    return experiment, samples


def check_same(first: tuple[Path, type[Experiment], Samples], second: tuple[Path, type[Experiment], Samples]) -> None:
    """Raise DataError naming the first difference between what two runs were asked."""
    (here, experiment, ours), (there, other, theirs) = first, second
    if experiment is not other:
        raise DataError(
            f"{here} is a run of {experiment.name}, {there} one of {other.name}; compare runs of one experiment"
        )
    for name in [*ours, *theirs]:
        if (name in ours) != (name in theirs):
            has, lacks = (here, there) if name in ours else (there, here)
            both = [task for task in ours if task in theirs]
            hint = f"give --tasks {','.join(both)}" if both else "they have no task in common"
            raise DataError(f"{has} has {name}, {lacks} does not; {hint}")
    for name in ours:
        only = [i for i in ours[name] if i not in theirs[name]] or [i for i in theirs[name] if i not in ours[name]]
        if only:
            has, lacks = (here, there) if only[0] in ours[name] else (there, here)
            raise DataError(
                f"{name}: {has} has {len(only)} samples that {lacks} does not, first {only[0]!r} "
                f"({len(ours[name])} and {len(theirs[name])} samples); run both with the same data and --limit"
            )
        for i, sample in ours[name].items():
            if str(sample.reference) != str(theirs[name][i].reference):
                raise DataError(
                    f"{name}: sample {i!r} has the reference {sample.reference_text[:60]!r} in {here}, "
                    f"{theirs[name][i].reference_text[:60]!r} in {there}: these are different samples"
                )
            if len({sample.made_from, theirs[name][i].made_from} - {None}) > 1:
                raise DataError(
                    f"{name}: sample {i!r} has another context or question in {here} than in {there}; run both over "
                    "the same data"
                )


def asked_otherwise(first: Path, second: Path, experiment: type[Experiment]) -> dict[str, tuple[Any, Any]]:
    """Settings that say what was asked and differ between two runs: name: (first's, second's).

    What run.json does not say, or a folder in LongBench's own layout, is not compared.
    """
    ours, theirs = (_resolved(folder, experiment) for folder in (first, second))
    chooses = experiment.read({}).chooses()
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted((ours.keys() & theirs.keys()) - COMPARED):
        one, other = ours[name], theirs[name]
        if isinstance(one, dict) and isinstance(other, dict):  # parts, of which each run may have others
            both = sorted(one.keys() & other.keys())
            found |= {part: (one[part], other[part]) for part in both if one[part] != other[part]}
        elif name not in chooses and one != other:
            found[name] = (one, other)
    return found


def _resolved(folder: Path, experiment: type[Experiment]) -> dict[str, Any]:
    return experiment.resolved_of(read_run(folder)) if (folder / RUN).exists() else {}


def _refuse(first: Path, second: Path, differing: Mapping[str, tuple[Any, Any]], allowed: Collection[str]) -> None:
    """Raise DataError for settings that differ and are not allowed to."""
    if refused := [name for name in differing if name not in allowed]:
        named = " and ".join(f"{name} = {words(one)}, not {words(other)}" for name, (one, other) in differing.items())
        raise DataError(
            f"{first} and {second} were not asked the same: {named}; to compare them all the same give "
            f"--allow {','.join(refused)}"
        )


def compare(
    first: Path, second: Path, *, tasks: Sequence[str] | None = None, allow: Collection[str] = ()
) -> dict[str, Any]:
    """Paired differences, second less first, with bootstrap 95 % intervals over samples.

    tasks: only these.    allow: settings that may differ though they say what was asked (`input_limit`, say).
    Returns {"first", "second", "experiment", "unit", "differing": {SETTING: [first's, second's]},
    "tasks": {NAME: {"samples", "first", "second", "difference", "interval", "changed", "better", "worse"}},
    "largest": [{"task", "id", "first", "second", "difference", "reference", "predictions"}, …]}.
    Better and worse count larger and smaller scores.
    Raises DataError when the two are not over the same samples, or were asked otherwise.
    """
    loaded = []
    for path in (first, second):
        experiment, samples = load(path)
        for name in tasks or []:
            if name not in samples:
                raise DataError(f"{path} has no {name}; it has {', '.join(samples)}")
        loaded.append((path, experiment, {n: s for n, s in samples.items() if tasks is None or n in tasks}))
    check_same(*loaded)
    (_, experiment, ours), (_, _, theirs) = loaded
    differing = asked_otherwise(first, second, experiment)
    _refuse(first, second, differing, allow)
    factor = experiment.factor
    result: dict[str, Any] = {"first": str(first), "second": str(second)}
    result |= {"experiment": experiment.name, "unit": experiment.unit}
    result["differing"] = {name: list(values) for name, values in differing.items()}
    result["tasks"] = {name: _task(ours[name], theirs[name], factor) for name in ours}
    changes: list[dict[str, Any]] = [
        {
            "task": name,
            "id": i,
            "first": factor * _score(before),
            "second": factor * _score(theirs[name][i]),
            "difference": factor * (_score(theirs[name][i]) - _score(before)),
            "reference": before.reference_text,
            "predictions": [before.prediction, theirs[name][i].prediction],
        }
        for name, samples in ours.items()
        for i, before in samples.items()
    ]
    ranked = sorted((c for c in changes if abs(float(c["difference"])) > EQUAL), key=lambda c: -abs(c["difference"]))
    result["largest"] = ranked[:LARGEST]
    return result


def _task(ours: Mapping[str, Sample], theirs: Mapping[str, Sample], factor: float) -> dict[str, Any]:
    before = [factor * _score(sample) for sample in ours.values()]
    after = [factor * _score(theirs[i]) for i in ours]
    differences = [b - a for a, b in zip(before, after, strict=True)]
    better, worse = sum(d > EQUAL for d in differences), sum(d < -EQUAL for d in differences)
    return {
        "samples": len(differences),
        "first": mean(before),
        "second": mean(after),
        "difference": mean(differences),
        "interval": interval(differences),
        "changed": better + worse,
        "better": better,
        "worse": worse,
    }


def _score(sample: Sample) -> float:
    assert sample.score is not None  # `load` leaves others out
    return sample.score
