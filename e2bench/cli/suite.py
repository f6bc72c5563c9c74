"""`e2bench suite` and `e2bench quickstart`, which is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from e2bench.cli.options import WITHOUT_DRY_RUN
from e2bench.cli.score import show_run
from e2bench.errors import E2BenchError
from e2bench.experiments.options import Common
from e2bench.suites.entries import read_suite
from e2bench.suites.execute import run_suite
from e2bench.terminal import say_next


def run(name: str, common: Common, sets: Sequence[str] = (), only: Sequence[str] = ()) -> None:
    """Plan a suite, work it off and report it. sets: NAME=VALUE of its variables.    only: pieces of it."""
    suite = read_suite(name, common, dict(_value(one) for one in sets), only)
    run_suite(suite, dry_run=common.dry_run, show=show_run)
    if common.dry_run:
        say_next(WITHOUT_DRY_RUN)


def _value(text: str) -> tuple[str, Any]:
    """A variable and its value, read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise E2BenchError(f"--set {text!r} is not possible; write NAME=VALUE, as in --set model=FOLDER")
    try:
        return name.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return name.strip(), value
