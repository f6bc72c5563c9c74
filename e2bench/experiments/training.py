"""Whether an evaluation asks in words that a model was trained on; such a number shows reach, not skill.

`e2bench train` counts the rows of its texts that hold an evaluation's wording, into `wordings` of e2_config.json. For
checkpoints older than that the data files are looked through where they still are; else their names tell.
"""

from __future__ import annotations

import glob
import gzip
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from e2bench.experiments.base import EXPERIMENTS, Experiment, experiment
from e2bench.files import sha256_of
from e2bench.prompts.wording import Wording

Rows = dict[str, int | None]  # a wording's name: rows that hold it; None: some, not counted

# Files of `train/miniature/retrieval.py` are called so; until it got words of its own it used these.
RETRIEVAL_FILES = "answers"
OF_RETRIEVAL_FILES = ("passkey landmark", "passkey e2bench", "attention")


def every_wording() -> list[Wording]:
    """The wordings of all experiments, each once."""
    return list(dict.fromkeys(wording for name in EXPERIMENTS for wording in experiment(name).wordings))


def rows_with(texts: Iterable[str], wordings: Iterable[Wording]) -> dict[str, int]:
    """How many of the texts hold each wording."""
    wordings = list(wordings)
    counts = {wording.name: 0 for wording in wordings}
    for text in texts:
        for wording in wordings:
            counts[wording.name] += wording.is_in(text)
    return counts


def trained_on(e2: Mapping[str, Any]) -> Rows:
    """Rows by wording of the training that an e2_config.json describes; without the field from its files."""
    stored = e2.get("wordings")
    if isinstance(stored, dict):
        return {str(name): rows if isinstance(rows, int) else None for name, rows in stored.items()}
    hashes = e2.get("data")
    hashes = hashes if isinstance(hashes, dict) else {}
    there = {path.name: path for path in _files(e2) if hashes.get(path.name) == sha256_of(path)}
    counts: Rows = dict(rows_with(_lines(there.values()), every_wording())) if there else {}
    lost = [name for name in hashes if name not in there]
    return {**counts, **{name: counts.get(name) or None for name in by_name(lost)}}


def by_name(files: Iterable[str]) -> tuple[str, ...]:
    """The wordings that training files hold by what they are called."""
    return OF_RETRIEVAL_FILES if any(str(name).startswith(RETRIEVAL_FILES) for name in files) else ()


def familiar(of: type[Experiment], resolved: Mapping[str, Any], rows: Rows) -> Rows:
    """The wordings of a run with these settings that the training holds."""
    return {wording.name: rows[wording.name] for wording in of.worded(resolved) if rows.get(wording.name, 0) != 0}


def _files(e2: Mapping[str, Any]) -> Iterator[Path]:
    """The data files that the recipe names, those that are there."""
    settings = e2.get("settings")
    sources = settings.get("data") if isinstance(settings, dict) else None
    for source in sources if isinstance(sources, list) else []:
        names = source.get("files") if isinstance(source, dict) else None
        for name in names if isinstance(names, list) else []:
            yield from (Path(match) for match in glob.glob(str(Path(str(name)).expanduser())) if Path(match).is_file())


def _lines(paths: Iterable[Path]) -> Iterator[str]:
    """Lines of JSON files, as they stand: no wording has a letter that JSON writes otherwise."""
    for path in paths:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8", errors="replace") as file:
            yield from file
