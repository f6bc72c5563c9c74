"""What runs were asked and where: what the runs of an experiment share, and a table of what they differ in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from e2bench.reporting import labels, tables
from e2bench.reporting.runs import Results, Run
from e2bench.reporting.table import Column, Row, Table

# Not settings: what was found out, where things lay on the machine, what is long, what other columns of the page say.
_LEFT_OUT = {"experiment", "format", "started", "ended", "files", "asked", "findings", "data", "data_source", "hashes"}
_LEFT_OUT |= {"model.path", "model.e2", "all_tasks", "rope.inv_freq", "out", "resume", "fresh", "checks", "work"}
_LEFT_OUT |= {"continued", "grid"}  # later calls have the same settings; a grid is its lengths and `rope.factor`
_SHOWN_CHARS = 80
_VERSIONS = "versions."
_HASH = re.compile(r"[0-9a-f]{16,}")


@dataclass
class Settings:
    """Of the runs of one experiment. shared: (name, value) of what all have; differing: a row a run, or None."""

    experiment: str
    runs: int
    shared: list[tuple[str, str]]
    differing: Table | None


def of_runs(found: Results) -> list[Settings]:
    """The settings of every experiment that has runs with a run.json."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in found.runs:
        if run.manifest:
            groups[run.experiment].append(run)
    return [_settings(experiment, runs) for experiment, runs in groups.items()]


def _settings(experiment: str, runs: list[Run]) -> Settings:
    each = [dict(_flat(run)) for run in runs]
    names = list(dict.fromkeys(name for one in each for name in one))
    shared = [(name, each[0][name]) for name in names if _values(name, each) == {each[0].get(name)}]
    differing = _with_one_of_versions(each, [name for name in names if len(_values(name, each)) > 1])
    if not differing:
        return Settings(experiment, len(runs), shared, None)
    rows: list[Row] = [
        {"run": run.name, **{_key(name): text for name, text in one.items()}}
        for run, one in zip(runs, each, strict=True)
    ]
    columns = [Column("run", "Run"), *(Column(_key(name), name.replace("_", " ")) for name in differing)]
    title = f"What the {len(runs)} runs of {experiment} differ in"
    return Settings(experiment, len(runs), shared, Table(f"settings-{experiment}", title, columns, rows))


def _key(name: str) -> str:
    """Of a column: no setting is taken for what all tables have, as `run`; the page gives `versions` more room."""
    return name if name == "versions" else f"setting.{name}"


def _with_one_of_versions(each: Sequence[dict[str, str]], differing: list[str]) -> list[str]:
    """Names of settings, where one, `versions`, stands for all versions that differ: a column a package is too many."""
    packages = [name.removeprefix(_VERSIONS) for name in differing if name.startswith(_VERSIONS)]
    if len(packages) < 2:
        return differing
    for one in each:
        one["versions"] = ", ".join(f"{name} {one[_VERSIONS + name]}" for name in packages if _VERSIONS + name in one)
    return [*(name for name in differing if not name.startswith(_VERSIONS)), "versions"]


def _values(name: str, each: Sequence[dict[str, str]]) -> set[str | None]:
    """What the runs have there. A part that only some record, such as a task's version, is no difference."""
    values = {one.get(name) for one in each}
    return values - {None} if "." in name else values


def _flat(run: Run) -> Iterator[tuple[str, str]]:
    """(name, value as text): settings as they came out first, then as given where that says more."""
    resolved, given = run.part("resolved"), run.part("settings")
    asked = {**given, **resolved, "model": _model(run, resolved.get("model"))}
    if isinstance(resolved.get("grid"), list):  # the same lengths can be asked for in several ways
        asked["lengths"] = ", ".join(map(labels.tokens, sorted({length for length, *_ in resolved["grid"]})))
    yield from _entries(asked, "")
    for key, value in run.manifest.items():
        if key not in ("resolved", "settings", *resolved, *given):
            yield from _entries({key: value}, "")


def _model(run: Run, fingerprint: object) -> str:
    """The name that people know it by, and what tells two of that name apart."""
    return f"{run.model} ({str(fingerprint)[:8]})" if fingerprint else run.model


def _entries(values: dict[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{before}{key}"
        if name in _LEFT_OUT:
            continue
        if isinstance(value, dict):
            yield from _entries(value, f"{name}.")
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    """A value as people write it; a hash by its beginning, a long list by its number, a path by its last part.

    Documents, which are hashes, are named as in the notes of Table 3.
    """
    if isinstance(value, str):
        if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
            return PureWindowsPath(value).name or value
        return value[:12] if _HASH.fullmatch(value) else value
    if isinstance(value, list) and value and all(isinstance(one, str) and _HASH.fullmatch(one) for one in value):
        return f"{len(value)}, list {tables.short_hash(value)}"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return f"{len(value)} entries"
    text = labels.setting_text(value)
    if len(text) > _SHOWN_CHARS and isinstance(value, list):
        return f"{len(value)}: {labels.setting_text(value[:3])}, …"
    return text
