"""Stored lines to scores.json: which experiment a folder is of, and what its lines add up to. No model, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.experiments.base import EXPERIMENTS, Experiment, experiment
from e2bench.files import check_folder, json_bytes, write_json
from e2bench.runs.lines import RUN, SCORES, read_run


def experiment_of(folder: Path) -> type[Experiment]:
    """The experiment of a run's folder; of one without run.json LongBench, whose own layout it then has.

    Raises DataError for an unknown one.
    """
    name = read_run(folder).get("experiment") if (folder / RUN).exists() else "longbench"
    if name not in EXPERIMENTS:
        raise DataError(f"{folder / RUN} names the experiment {name!r}, which e2bench does not know")
    return experiment(name)


def score_folder(folder: Path, **options: Any) -> dict[str, Any]:
    """The contents of scores.json for a run folder of ours or of LongBench's own layout. Writes nothing.

    options: of the experiment's `summarise`, such as LongBench's `rouge_score`.
    Raises DataError for what is no such folder, for an unknown experiment, and naming file and row for a damaged line.
    """
    check_folder(folder, "score takes a run's folder or one with LongBench prediction files (NAME.jsonl)")
    found = experiment_of(folder)
    with damage(folder):
        return found.summarise(folder, **options)


@contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Turn values of another kind than ours, in lines that are JSON, into a DataError of one line."""
    import numpy as np

    try:
        with np.errstate(divide="raise", over="ignore", invalid="ignore"):
            yield
    except KeyError as error:
        raise DataError(f"{folder}: a line has no field {error}; docs/files.md says what a line holds") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise DataError(
            f"{folder}: a line holds a value of another kind than docs/files.md says ({type(error).__name__}: {error})"
        ) from None


def write_scores(folder: Path, scores: Mapping[str, Any]) -> Path:
    """Put scores.json into a run's folder, whole or not at all; one that says the same is left alone."""
    path = folder / SCORES
    if not path.exists() or path.read_bytes() != json_bytes(scores):
        write_json(path, scores)
    return path
