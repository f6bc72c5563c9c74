"""The lines of a run folder: read, merged over processes, named by id."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.files import Limits, read_json, read_rows

RUN, SCORES = "run.json", "scores.json"
FORMAT = 1  # of run.json
MOST_PARTS = 10_000  # files of single processes
LM_EVAL = "lm-eval.json"  # what lm-eval said of each task, as it said it


def read_run(folder: Path) -> dict[str, Any]:
    """run.json. Raises DataError for one that is no JSON object, or of a later format than this release reads."""
    run = read_json(folder / RUN)
    if (found := run.get("format", FORMAT)) != FORMAT:
        raise DataError(
            f"{folder / RUN} has the format {found!r}, this e2bench reads {FORMAT}: it was written by a later release; "
            "pip install --upgrade e2bench"
        )
    return run


def asked(folder: Path) -> dict[str, int] | None:
    """NAME: how many leading lines the last complete call asked for; None where run.json does not say."""
    counts = read_run(folder).get("asked") if (folder / RUN).exists() else None
    return counts if isinstance(counts, dict) and all(isinstance(n, int) for n in counts.values()) else None


def names_of(folder: Path) -> list[str]:
    """What a run's last call asked for lines of; NAME.rankN.jsonl of a single process belongs to NAME."""
    names = {path.name.split(".")[0] for path in folder.glob("*.jsonl")}
    counts = asked(folder)
    return sorted(names if counts is None else names & counts.keys())


def merged(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """id: line, over NAME.jsonl and the files of single processes."""
    found: dict[str, dict[str, Any]] = {}
    limits, parts = Limits(), sorted(itertools.islice(folder.glob(f"{name}.rank*.jsonl"), MOST_PARTS + 1))
    if len(parts) > MOST_PARTS:
        raise DataError(
            f"{folder} holds more than {MOST_PARTS:,} files {name}.rankN.jsonl; no run has so many processes"
        )
    for path in [folder / f"{name}.jsonl", *parts]:
        if path.exists():
            for row in read_rows(path, limits=limits):
                found.setdefault(row_id(row), row)
    return found


def stored_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of one file that a run's last call asked for; all of a folder in LongBench's own layout."""
    if (folder / RUN).exists():
        counts = asked(folder)
        return list(merged(folder, name).values())[: None if counts is None else counts.get(name, 0)]
    return read_rows(folder / f"{name}.jsonl", ours=False)


def row_id(row: Mapping[str, Any]) -> str:
    """What tells one line of a file from another: `_id`, or the cell of a perplexity, passkey or attention line."""
    if "_id" in row:
        return str(row["_id"])
    keys = ("document", "window", "length", "depth", "trial", "scale")
    return " ".join(f"{key}={row[key]}" for key in keys if key in row)
