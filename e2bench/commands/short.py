"""`e2bench short`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.options import Common
from e2bench.processes import Processes
from e2bench.provenance import BENCHMARKS, OWN, PUBLIC, DataSource
from e2bench.records import check_folder, file_hashes
from e2bench.scales import PER_INPUT, parse_length, short_number
from e2bench.session import (
    batch_size,
    check_model,
    check_scale,
    default_out,
    finish_run,
    given,
    load_model,
    open_run,
    rule_for,
    say,
)
from e2bench.tasks.short import SHORT, TABLE_7, ShortTask, select

SUITES = ("paper", "lm-eval")


def run(
    common: Common, *, suite: str, tasks: str | None, data: Path | None, limit: int | None, model: Any = None
) -> Path | None:
    """Measure the short benchmarks, zero-shot. Returns the run's folder, on rank 0.

    model: a loaded one; None: the one that `common` names.
    """
    settings = {name: value for name, value in locals().items() if name not in ("common", "model")}
    if suite not in SUITES:
        raise UnknownName("suite", suite, list(SUITES))
    check_scale(common)
    if common.scale == PER_INPUT:
        raise E2BenchError(f"--scale {PER_INPUT} is several scales; a short run has one: give a number or auto")
    chosen = _there([task for task in select(tasks) if suite == "paper" or task.lm_eval], data, wanted=tasks)
    if model is None:
        check_model(common)

    from e2bench import choices, harness

    limit = limit or None
    rows: dict[str, list[dict[str, Any]]] = {}
    if data is not None:  # checked before anything is loaded, for either suite
        rows = {task.name: choices.read_rows_of(data, task, limit) for task in chosen}
    elif suite == "paper":
        rows = {task.name: choices.hub_rows(task, limit) for task in chosen}
    model = load_model(common) if model is None else model
    rule = rule_for(common, model)
    window = rule.window(parse_length(common.window) if common.window else None)
    scaling = rule.scaling(window)
    names = _names(chosen, suite)
    own = [name for name, task in zip(names, chosen, strict=True) if task.has_own_rows(rows.get(task.name, ()))]
    named: dict[str, Any] = {"own_rows": own} if own else {}
    if own:
        say(f"{', '.join(own)}: rows of your own, not the published set's: in a column of their own, in no average")
    resolved = {
        "suite": suite,
        "tasks": names,
        "all_tasks": _names(TABLE_7, suite),
        **({"versions": {task.name: task.version for task in chosen}} if suite == "paper" else {}),
        "limit": limit,
        "method": rule.method,
        "scale": short_number(scaling.factor),
    }
    processes = Processes.from_environment()
    model.rope.set(scaling, window)
    out = common.out or Path(f"{default_out('short', model, rule)}-{suite}")
    hashes = file_hashes(data / f"{task.file}.jsonl" for task in chosen) if data else dict.fromkeys(names, "public")
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_run(
            "short",
            common,
            model,
            processes,
            settings=given(common, **settings),
            resolved=resolved,
            rope={"method": rule.method, "factor": short_number(scaling.factor)},
            data=hashes,
            # lm-eval evaluates a task whole, and its lines do not say what they were made from
            chooses={} if suite == "lm-eval" else {"tasks": False, "limit": False, "versions": True, "data": False},
            source=DataSource(OWN, data.resolve().name) if data else DataSource(PUBLIC, BENCHMARKS["short"]),
            out=out,
            **named,
        ) as folder,
    ):
        model.rope.restore()
        if suite == "paper":
            work = [(task, rows[task.name]) for task in chosen]
            choices.measure(model, work, scaling, folder, processes, batch_size(common))
        else:
            manager = harness.task_manager(chosen, data, Path(scratch))
            harness.measure(
                model, chosen, manager, scaling, folder, processes, limit=limit, batch_size=batch_size(common)
            )
        scores = finish_run(out, processes)
    return None if scores is None else out


def _names(tasks: Sequence[ShortTask], suite: str) -> list[str]:
    """What the suite calls the tasks that it has (the harness has no RACE-Middle)."""
    if suite == "lm-eval":
        return [task.lm_eval for task in tasks if task.lm_eval]
    return [task.name for task in tasks]


def _there(tasks: list[ShortTask], data: Path | None, *, wanted: str | None) -> list[ShortTask]:
    """Tasks whose rows can be had: a file in `data`, or a public set."""
    if data is None:
        return [task for task in tasks if task.hub is not None or wanted is not None]
    check_folder(data, "--data takes a folder with files like piqa.jsonl")
    there = [task for task in tasks if (data / f"{task.file}.jsonl").is_file()]
    missing = [f"{task.file}.jsonl" for task in tasks if task not in there]
    if wanted is not None and missing:
        raise DataError(f"{data} has no {missing[0]}; needed for --tasks {wanted}")
    if not there:
        raise DataError(f"{data} holds none of {', '.join(dict.fromkeys(task.file for task in SHORT))} (.jsonl)")
    left_out = [task.column for task in tasks if task in TABLE_7 and task not in there]
    if left_out:
        say(f"left out, no file in {data}: {', '.join(left_out)}")
    return there
