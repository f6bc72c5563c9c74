"""Stored lines to scores.json: which experiment a folder is of, and what its lines add up to. No model, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.experiments.base import EXPERIMENTS, Experiment, experiment
from e2bench.files import check_folder, file_hashes, json_bytes, read_json, write_json
from e2bench.runs.lines import RUN, SCORES, asked, read_run


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
    """Put scores.json into a run's folder, with what it is of; one that says the same is left alone."""
    path, content = folder / SCORES, {**scores, "of": _lines_of(folder)}
    if not path.exists() or path.read_bytes() != json_bytes(content):
        write_json(path, content)
    return path


def current_scores(folder: Path) -> tuple[dict[str, Any], bool]:
    """scores.json, or scores made now where it is missing or of other lines; and whether it was of other lines.

    One that does not say what it is of (older, or lines that were not passed on) is taken as it is.
    """
    if not (folder / SCORES).exists():
        return score_folder(folder), False
    stored = read_json(folder / SCORES)
    now = _lines_of(folder)
    if not isinstance(stored.get("of"), dict) or not now["lines"] or stored["of"] == now:
        return stored, False
    return score_folder(folder), True


def _lines_of(folder: Path) -> dict[str, Any]:
    """File: SHA-256 of a run's lines, and how many of them were asked for last."""
    return {"lines": file_hashes(sorted(folder.glob("*.jsonl"))), "asked": asked(folder)}
