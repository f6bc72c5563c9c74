"""Two runs over the same samples: paired differences per task. Reads stored lines; no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.records import RUN, check_folder, names_of, read_json, row_id, stored_rows
from e2bench.scoring import damage, score_predictions
from e2bench.statistics import interval, mean

LARGEST = 10
EQUAL = 1e-12


@dataclass(frozen=True)
class Sample:
    """One sample's score (higher is better, but for perplexity), its reference and what was predicted."""

    score: float
    reference: str
    prediction: str


Samples = dict[str, dict[str, Sample]]  # task: {id: sample}


@dataclass(frozen=True)
class Unit:
    """How an experiment's scores are called and shown: a factor on every score."""

    name: str
    factor: float


UNITS = {
    "longbench": Unit("points", 100),
    "short": Unit("points", 100),
    "passkey": Unit("points", 100),
    "attention": Unit("share of attention on the gold span, %", 100),
    "ppl": Unit("nats a token (lower is better)", 1),
}


def load(folder: Path) -> tuple[str, Samples]:
    """(experiment, samples by task) of a run's folder, or of one in LongBench's own layout.

    Raises DataError for a folder without lines, and whatever the scorer finds wrong with one.
    """
    check_folder(folder, "compare takes run folders")
    ours = (folder / RUN).exists()
    experiment = str(read_json(folder / RUN).get("experiment")) if ours else "longbench"
    if experiment not in UNITS:
        raise DataError(f"{folder / RUN} names the experiment {experiment!r}, which e2bench does not know")
    with damage(folder):
        samples = _samples(folder, experiment)
    samples = {task: found for task, found in samples.items() if found}
    if not samples:
        raise DataError(f"{folder} holds no finished line; run the experiment first")
    return experiment, samples


def _samples(folder: Path, experiment: str) -> Samples:
    if experiment == "longbench":
        return _longbench(folder)
    if experiment == "short":
        return {name: _short({row_id(row): row for row in stored_rows(folder, name)}) for name in names_of(folder)}
    return _cells(experiment, stored_rows(folder, experiment))


def _longbench(folder: Path) -> Samples:
    from e2bench.tasks.longbench import EVERY_TASK

    samples: Samples = {}
    names = names_of(folder)
    for task in (task for task in EVERY_TASK if task.name in names):
        path = folder / f"{task.name}.jsonl"
        rows = [row for row in stored_rows(folder, task.name) if row.get("finish") != "error"]
        scores = score_predictions(rows, task, where=str(path))
        samples[task.name] = {
            str(row.get("_id", number)): Sample(score, str(row["answers"]), row["pred"])
            for number, (row, score) in enumerate(zip(rows, scores, strict=True), 1)
        }
    return samples


def _short(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Sample]:
    return {name: Sample(float(row["correct"]), str(row["gold"]), str(row["prediction"])) for name, row in rows.items()}


def _cells(experiment: str, rows: Sequence[Mapping[str, Any]]) -> Samples:
    """A task a length. The scale is left out of the names: it is what two runs differ in."""
    keys, size, sample = _CELLS[experiment]
    samples: Samples = {}
    for row in rows:
        name = " ".join(f"{key}={row[key]}" for key in keys)
        found = samples.setdefault(f"{row[size]:,}", {})
        if name in found:
            raise DataError(
                f"a run measured {name} at {size} {row[size]:,} at several scales: "
                "no pair; compare runs with one scale a length"
            )
        found[name] = sample(row)
    return samples


_CELLS: dict[str, tuple[tuple[str, ...], str, Callable[[Mapping[str, Any]], Sample]]] = {
    "passkey": (
        ("depth", "trial"),
        "length",
        lambda row: Sample(float(bool(row["success"])), str(row["key"]), str(row["pred"])),
    ),
    "attention": (
        ("depth", "trial"),
        "length",
        lambda row: Sample(float(row["gold_share"]), str(row["answer"]), str(row["pred"])),
    ),
    "ppl": (
        ("document",),
        "window",
        lambda row: Sample(row["nll_sum"] / row["scored_tokens"], str(row["scored_tokens"]), ""),
    ),
}


def check_same(first: tuple[Path, str, Samples], second: tuple[Path, str, Samples]) -> None:
    """Raise DataError naming the first difference between what two runs were asked."""
    (here, experiment, ours), (there, other, theirs) = first, second
    if experiment != other:
        raise DataError(f"{here} is a run of {experiment}, {there} one of {other}; compare runs of one experiment")
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
            if sample.reference != theirs[name][i].reference:
                raise DataError(
                    f"{name}: sample {i!r} has the reference {sample.reference[:60]!r} in {here}, "
                    f"{theirs[name][i].reference[:60]!r} in {there}: these are different samples"
                )


def compare(first: Path, second: Path, *, tasks: Sequence[str] | None = None) -> dict[str, Any]:
    """Paired differences, second less first, with bootstrap 95 % intervals over samples.

    tasks: only these. Returns {"first", "second", "experiment", "unit", "tasks": {NAME: {"samples", "first", "second",
    "difference", "interval", "changed", "better", "worse"}}, "largest": [{"task", "id", "first", "second",
    "difference", "reference", "predictions"}, …]}. Better and worse count larger and smaller scores.
    Raises DataError when the two are not over the same samples.
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
    unit = UNITS[experiment]
    result: dict[str, Any] = {"first": str(first), "second": str(second), "experiment": experiment, "unit": unit.name}
    result["tasks"] = {name: _task(ours[name], theirs[name], unit.factor) for name in ours}
    changes: list[dict[str, Any]] = [
        {
            "task": name,
            "id": i,
            "first": unit.factor * before.score,
            "second": unit.factor * theirs[name][i].score,
            "difference": unit.factor * (theirs[name][i].score - before.score),
            "reference": before.reference,
            "predictions": [before.prediction, theirs[name][i].prediction],
        }
        for name, samples in ours.items()
        for i, before in samples.items()
    ]
    ranked = sorted((c for c in changes if abs(float(c["difference"])) > EQUAL), key=lambda c: -abs(c["difference"]))
    result["largest"] = ranked[:LARGEST]
    return result


def _task(ours: Mapping[str, Sample], theirs: Mapping[str, Sample], factor: float) -> dict[str, Any]:
    before = [factor * sample.score for sample in ours.values()]
    after = [factor * theirs[i].score for i in ours]
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
