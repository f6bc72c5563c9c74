"""A suite's YAML file: found, read with the line of every key, its variables filled in. Knows no setting by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.marked import Marked, at, read_yaml

SHIPPED = Path(__file__).parent
VARIABLE = re.compile(r"\$(?:\$|(\w+)|\{(\w+)\})")


@dataclass(frozen=True)
class SuiteFile:
    """name: the file's, without suffix.    shown: how messages call it.    top: its contents, variables filled in.

    variables: those that it has.
    """

    name: str
    shown: str
    top: Marked
    variables: frozenset[str]

    def at(self, line: int, what: str = "") -> AbstractContextManager[None]:
        """Put file and line before the message of a mistake made inside."""
        return at(self.shown, line, what)

    def refuse(self, line: int, message: str) -> E2BenchError:
        """A mistake at a line of the file, to be raised."""
        return E2BenchError(f"{self.shown}:{line}: {message}")


def shipped() -> list[str]:
    """Names of the suites that come with e2bench."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_file(name: str, values: Mapping[str, Any], options: Mapping[str, Any]) -> SuiteFile:
    """The suite of that name, or in that file, with `values` for its variables, and options of a variable's name.

    Raises E2BenchError, one line naming file and place, for what is no suite, and for a value of no variable of it.
    """
    path = _find(name)
    shown = path.name if path.parent == SHIPPED else str(path)
    top = read_yaml(path, shown)
    if not isinstance(top, Marked):
        raise E2BenchError(f"{shown}:1: a suite has `models:` and `experiments:` (docs/howto/suites.md)")
    file = SuiteFile(path.stem, shown, top, frozenset(_variables(top, shown)))
    for key in values:
        if key not in file.variables:
            hint = "" if file.variables else f"{shown} has no variables"
            raise UnknownName(f"variable of {shown}", key, sorted(file.variables), hint=hint)
    same = {key: value for key, value in options.items() if key in file.variables}
    known = {**top.pop("variables", {}), **same, **values}
    _check_needs(file, known)
    return SuiteFile(file.name, shown, _filled(file, top, known, top.line), file.variables)


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped():
        return SHIPPED / f"{name}.yaml"
    if path.is_dir() or len(path.parts) > 1 or path.suffix in (".yaml", ".yml"):
        raise DataError(f"no suite file {name}; give a YAML file, or one of {', '.join(shipped())}")
    raise UnknownName("suite", name, shipped())


def _variables(top: Marked, shown: str) -> list[str]:
    found = top.get("variables", {})
    if not isinstance(found, dict):
        raise E2BenchError(f"{shown}:{top.lines['variables']}: variables are `name: default` pairs")
    return list(found)


def _check_needs(file: SuiteFile, known: Mapping[str, Any]) -> None:
    """Refuse a variable of the file's `needs:` that has no value."""
    needs = file.top.get("needs", [])
    line = file.top.lines.get("needs", 1)
    if not isinstance(needs, list) or not all(name in file.variables for name in needs):
        raise file.refuse(line, "`needs:` is a list of names of `variables:`")
    missing = [name for name in needs if known[name] is None]
    if missing:
        raise file.refuse(line, f"give {' '.join(f'--set {name}=VALUE' for name in missing)}")


def _filled(file: SuiteFile, value: Any, known: Mapping[str, Any], line: int) -> Any:
    """`value` with every `$name` in it replaced; a text that is one variable alone becomes its value, of any type."""
    if isinstance(value, Marked):
        made = Marked(value.line)
        made.lines = value.lines
        made.update({key: _filled(file, one, known, value.lines[key]) for key, one in value.items()})
        return made
    if isinstance(value, list):
        return [_filled(file, one, known, line) for one in value]
    if not isinstance(value, str):
        return value
    whole = VARIABLE.fullmatch(value)
    if whole and (name := whole[1] or whole[2]):
        return _value(file, name, known, line)
    return VARIABLE.sub(lambda m: str(_value(file, m[1] or m[2], known, line)) if m[1] or m[2] else "$", value)


def _value(file: SuiteFile, name: str, known: Mapping[str, Any], line: int) -> Any:
    if name not in known:
        with file.at(line):
            raise UnknownName("variable", name, sorted(known), hint="list it under `variables:` with its default")
    return known[name]
