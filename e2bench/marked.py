"""YAML with the line of every key, so that a mistake in a file can be named by its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from e2bench.errors import DataError, E2BenchError, UnknownName, one_line

NOT_YAML = (ValueError, RecursionError)  # PyYAML lets impossible dates and deep nesting through


class Marked(dict[str, Any]):
    """A mapping that knows its line in the file, and those of its keys."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class _Loader(yaml.SafeLoader):
    """Plain YAML, mappings with their lines."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Marked:
    made = Marked(node.start_mark.line + 1)
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(problem=f"key {key!r} is no text", problem_mark=key_node.start_mark)
        if key in made:
            raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=key_node.start_mark)
        made[key] = loader.construct_object(value_node, deep=True)
        made.lines[key] = key_node.start_mark.line + 1
    return made


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: Path, shown: str) -> Any:
    """A file's contents, every mapping `Marked`. Raises E2BenchError beginning with `shown`, and with the line."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise E2BenchError(f"{shown}:{line}: not valid YAML: {one_line(error.problem)}") from None
    except (yaml.YAMLError, *NOT_YAML) as error:
        raise E2BenchError(f"{shown}: not valid YAML: {one_line(error)[:200]}") from None


@contextmanager
def at(shown: str, line: int, what: str = "") -> Iterator[None]:
    """Put file and line before the message of a mistake that is found inside."""
    try:
        yield
    except E2BenchError as error:
        raise E2BenchError(f"{shown}:{line}: {what}{': ' if what else ''}{error}") from None


def check_keys(shown: str, values: Marked, kind: str, known: tuple[str, ...]) -> None:
    """Raise UnknownName's message, with file and line, for a key that is none of `known` (dashes are underscores)."""
    for key in values:
        if key.replace("-", "_") not in known:
            with at(shown, values.lines[key]):
                raise UnknownName(kind, key, list(known))
