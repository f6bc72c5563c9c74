"""Stored lines to scores.json: which experiment a folder is of, and what its lines add up to. No model, no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.experiments.base import EXPERIMENTS, Experiment, experiment
from e2bench.files import (
    MOST_LINE_BYTES,
    check_folder,
    json_bytes,
    json_object,
    read_json,
    read_lines,
    regular,
    write_atomic,
)
from e2bench.runs.lines import RUN, SCORES, asked, read_run

SECONDS = re.compile(rb'"seconds": [0-9.e+-]+')  # two runs of one command differ in nothing else


def experiment_of(folder: Path) -> type[Experiment]:
    """The experiment of a run's folder; without run.json the one whose own layout its files have, else LongBench.

    Raises DataError for an unknown one.
    """
    if not (folder / RUN).exists():
        return layout_of(folder) or experiment("longbench")
    name = read_run(folder).get("experiment")
    if name not in EXPERIMENTS:
        raise DataError(f"{folder / RUN} names the experiment {name!r}, which e2bench does not know")
    return experiment(name)


def layout_of(folder: Path) -> type[Experiment] | None:
    """The experiment in whose benchmark's own layout a folder's files are; None: in none."""
    for path in sorted(folder.glob("[!.]*.jsonl")):
        fields = _first_fields(path)
        for name in EXPERIMENTS:
            layout = experiment(name).own_layout
            if layout and fields >= layout:
                return experiment(name)
    return None


def _first_fields(path: Path) -> set[str]:
    try:
        with regular(path).open("rb") as lines:  # a pipe would wait for ever
            return set(json_object(lines.readline(MOST_LINE_BYTES), str(path)))
    except (DataError, OSError):
        return set()


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
    path, content = folder / SCORES, json_bytes({**scores, "of": _lines_of(folder)})
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)
    return path


def current_scores(folder: Path) -> tuple[dict[str, Any], bool]:
    """scores.json, or scores made now where it is missing or of other lines; and whether it was of other lines.

    One that does not say what it is of (older, or lines that were not passed on) is taken as it is.
    """
    if not (folder / SCORES).exists():
        return score_folder(folder), False
    stored = read_json(folder / SCORES)
    if not isinstance(stored.get("of"), dict):
        return stored, False
    now = _lines_of(folder)
    is_stale = bool(now) and stored["of"] != now
    return (score_folder(folder), True) if is_stale else (stored, False)


def _lines_of(folder: Path) -> dict[str, str]:
    """File: SHA-256 of the lines that were asked for last, without their `seconds`."""
    counts, found = asked(folder), {}
    for path in sorted(folder.glob("*.jsonl")):
        name = path.name.removesuffix(".jsonl")
        if counts is not None and name.partition(".")[0] not in counts:
            continue
        most = None if counts is None else counts.get(name)  # of a single process's file all
        digest = hashlib.sha256()
        with regular(path).open("rb") as file:
            for number, line in islice(read_lines(file, path), most):
                digest.update((b"\n" if number > 1 else b"") + SECONDS.sub(b"", line).rstrip(b"\n"))
        found[path.name] = digest.hexdigest()
    return found
