"""Write docs/reference/commands.md from the command line itself: `python docs/generate.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from e2bench.cli.registry import COMMANDS
from e2bench.experiments.options import ENGINE, MODEL, RUN, SHARED

COMMON = set(SHARED)
PAGE = Path(__file__).parent / "reference" / "commands.md"
HEAD = """# Commands

Made from the command line by `python docs/generate.py`; `e2bench COMMAND --help` says the same. Do not edit.

Lengths: `4k` is 4,096 tokens, `4k..64k` doubles from end to end, commas list. L is the native window, g the scale,
g·L the extended window. Exit status: 0 done, 2 the user's mistake (one line on stderr), 1 our failure or a run that
ended incomplete, 130 interrupted (the same command goes on).
"""
SHARED_HEAD = """## Shared options

They belong to every command that says so; each command uses those that it needs.
"""


def page() -> str:
    """The whole page."""
    commands = {name: offer.function() for name, offer in COMMANDS.offers.items()}
    parts = [HEAD, " · ".join(f"[{name}](#{name})" for name in commands) + " · [shared options](#shared-options)\n"]
    parts += [_section(name, function) for name, function in commands.items()]
    parts.append(SHARED_HEAD)
    shared = _parameters(commands["longbench"])
    for panel in (MODEL, ENGINE, RUN):
        rows = {k: p for k, p in shared.items() if k in COMMON and _typer(p).rich_help_panel == panel}
        parts.append(f"### {panel}\n\n{_table(rows)}")
    return "\n".join(parts)


def _parameters(callback: Callable[..., None]) -> dict[str, inspect.Parameter]:
    known = inspect.signature(callback, eval_str=True).parameters
    return {name: one for name, one in known.items() if get_args(one.annotation)}  # not typer's own context


def _typer(parameter: inspect.Parameter) -> Any:
    """What typer was told of an option or argument: its names, its help, its panel."""
    return get_args(parameter.annotation)[1]


def _is_argument(parameter: inspect.Parameter) -> bool:
    return type(_typer(parameter)).__name__ == "ArgumentInfo"


def _section(name: str, function: Callable[..., None]) -> str:
    given = _parameters(function)
    shared = {key: p for key, p in given.items() if key in COMMON} if given.keys() >= COMMON else {}
    own = {key: p for key, p in given.items() if key not in shared}
    arguments = [_argument(p) for p in own.values() if _is_argument(p)]
    options = ["[OPTIONS]"] if len(given) > len(arguments) else []
    lines = [f"## {name}", "", f"`{' '.join(['e2bench', name, *arguments, *options])}`", ""]
    lines += [inspect.getdoc(function) or "", ""]
    lines += [_table(own)] if own else []
    unused = ", ".join(f"`{_flag(p)}`" for p in shared.values() if _typer(p).hidden)
    less = f"; has no use for {unused}" if unused else ""
    lines += [f"Takes the [shared options](#shared-options){less}.", ""] if shared else []
    return "\n".join(lines)


def _argument(parameter: inspect.Parameter) -> str:
    text = parameter.name.upper() + (" …" if "list" in str(get_args(parameter.annotation)[0]) else "")
    return text if parameter.default is inspect.Parameter.empty else f"[{text}]"


def _table(parameters: dict[str, inspect.Parameter]) -> str:
    return "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *_rows(parameters), ""])


def _rows(parameters: dict[str, inspect.Parameter]) -> Iterator[str]:
    for parameter in parameters.values():
        info = _typer(parameter)
        yield f"| {_names(parameter, info)} | {_default(parameter)} | {(info.help or '').replace('|', '&#124;')} |"


def _names(parameter: inspect.Parameter, info: Any) -> str:
    if _is_argument(parameter):
        return f"`{_argument(parameter)}`"
    flag = f"--{parameter.name.replace('_', '-')}"
    given = [name for name in (info.default, *(info.param_decls or ())) if str(name).startswith("-")]
    if isinstance(parameter.default, bool):
        return ", ".join(f"`{name}`" for name in given or [flag, f"--no-{flag[2:]}"])
    kind = str(get_args(parameter.annotation)[0])
    value = "N" if "int" in kind else "PATH" if "Path" in kind else "TEXT"
    return ", ".join(f"`{name} {value}`" for name in given or [flag])


def _flag(parameter: inspect.Parameter) -> str:
    return _names(parameter, _typer(parameter)).partition(" ")[0].strip("`,")


def _default(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return "needed"
    if isinstance(default, bool):
        return "on" if default else ""
    return "" if default is None else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
