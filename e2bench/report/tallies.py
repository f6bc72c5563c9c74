"""Lines of a run, read as they are, and the sums that a run interrupted before its scores.json still allows."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from e2bench.errors import DataError

Line = dict[str, Any]
_RANK = re.compile(r"\.rank\d+$")


def line_files(folder: Path) -> dict[str, list[Path]]:
    """Files of lines by name: `NAME.jsonl` and, of a run of several processes, `NAME.rankN.jsonl`."""
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        files[_RANK.sub("", path.name.removesuffix(".jsonl"))].append(path)
    return dict(files)


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """The JSON objects of these files; a last line without its newline was torn by a crash and is dropped.

    Raises:
        DataError: any other line that is no JSON object; the message names file and line.
    """
    lines: list[Line] = []
    for path in paths:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines += [_parse(raw, path, at) for at, raw in enumerate(whole.split(b"\n"), 1) if raw.strip()]
    return lines


def _parse(raw: bytes, path: Path, at: int) -> Line:
    try:
        line = json.loads(raw)
    except ValueError as error:  # UnicodeDecodeError is one too
        raise DataError(f"{path.name}:{at} is not a JSON object") from error
    if not isinstance(line, dict):
        raise DataError(f"{path.name}:{at} is not a JSON object")
    return line


def scores_from_lines(folder: Path, experiment: str) -> dict[str, Any]:
    """What scores.json would hold, without intervals that need resampling.

    Raises:
        DataError: the run has no lines, or a line lacks a field.
    """
    files = line_files(folder)
    lines = read_lines(path for paths in files.values() for path in paths)
    if not lines:
        raise DataError("the run has no finished piece of work yet")
    try:
        return _TALLY[experiment](lines)
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise DataError(f"a line lacks or garbles a field ({error!r}) and there is no scores.json") from error


def _perplexity(lines: list[Line]) -> dict[str, Any]:
    """exp(sum of nats / scored tokens) over documents, or the mean of window means where the protocol says so."""
    cells = []
    for (window, scale, method), group in _grouped(lines, "window", "scale", "method"):
        by_window = group[0].get("protocol") in ("window-mean", "yarn")
        total, count = ("mean_sum", "windows") if by_window else ("nll_sum", "scored_tokens")
        mean_nll = math.fsum(line[total] for line in group) / sum(line[count] for line in group)
        cells.append(
            {
                "window": window,
                "scale": scale,
                "method": method,
                "perplexity": math.exp(mean_nll),
                "documents": len({line["document"] for line in group}),
                "scored_tokens": sum(line["scored_tokens"] for line in group),
            }
        )
    return {"cells": cells}


def _passkey(lines: list[Line]) -> dict[str, Any]:
    lengths = []
    for (length, scale), group in _grouped(lines, "length", "scale"):
        found = sum(bool(line["success"]) for line in group)
        interval = wilson(found, len(group))
        row = {"length": length, "scale": scale, "accuracy": found / len(group), "interval": interval}
        lengths.append(row | {"trials": len(group)})
    return {"lengths": lengths}


def _attention(lines: list[Line]) -> dict[str, Any]:
    lengths = []
    for (length, scale), group in _grouped(lines, "length", "scale"):
        means = {key: sum(line[key] for line in group) / len(group) for key in ("gold_share", "input_share")}
        success = sum(bool(line["success"]) for line in group) / len(group)
        top_heads = group[0].get("top_heads", [])
        lengths.append({"length": length, "scale": scale, "success": success, "top_heads": top_heads, **means})
    return {"lengths": lengths}


def _short(lines: list[Line]) -> dict[str, Any]:
    tasks = {}
    for (name,), group in _grouped(lines, "dataset"):
        tasks[name] = 100.0 * sum(line["correct"] for line in group) / len(group)
    return {"suite": lines[0].get("suite"), "tasks": tasks, "details": {}, "averages": {}}


_TALLY: dict[str, Callable[[list[Line]], dict[str, Any]]] = {
    "ppl": _perplexity,
    "passkey": _passkey,
    "attention": _attention,
    "short": _short,
}


def _grouped(lines: list[Line], *keys: str) -> list[tuple[tuple[Any, ...], list[Line]]]:
    groups: dict[tuple[Any, ...], list[Line]] = defaultdict(list)
    for line in lines:
        groups[tuple(line[key] for key in keys)].append(line)
    return sorted(groups.items())


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): it stays within [0, 1] and is not empty at 0 or all successes."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    width = 1 + z * z / trials
    return max(0.0, (centre - half) / width), min(1.0, (centre + half) / width)
