"""`e2bench longbench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2bench.errors import DataError, E2BenchError
from e2bench.options import Common
from e2bench.processes import Processes
from e2bench.provenance import DEMO, OWN, PUBLIC, DataSource
from e2bench.records import check_folder, file_hashes
from e2bench.scales import PER_INPUT, ScaleRule, parse_length, short_number
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
from e2bench.task import Example, Task, read_examples, templates
from e2bench.tasks.longbench import select
from e2bench.tasks.models import find as find_preset
from e2bench.truncation import MODES, input_limit


def run(
    common: Common,
    *,
    tasks: str,
    data: Path | None,
    limit: int | None,
    input_limit: int | None,
    truncation: str,
    chat_template: str,
    prompts: Path | None,
    no_context: bool,
    early_stop: bool,
    model: Any = None,
) -> Path | None:
    """Answer LongBench's prompts and score the answers. Returns the run's folder, on rank 0.

    model: a loaded one, or what answers like one; None: the one that `common` names.
    """
    own = {name: value for name, value in locals().items() if name not in ("common", "model")}
    chosen = select(tasks)
    check_scale(common)
    if truncation not in MODES:
        raise E2BenchError(f"truncation {truncation!r} is not known; choose one of {', '.join(MODES)}")
    texts = templates(chosen, prompts)
    folder, source = data_folder(data, chosen)
    examples = {task.name: read_examples(folder, task, limit) for task in chosen}
    if common.window is not None:
        _check_budgets(chosen, parse_length(common.window))
    if model is None:
        check_model(common)

    from e2bench.chat import chat_wrapper
    from e2bench.generation import Settings, predict

    input_limit = input_limit or _preset_limit(common)
    model = load_model(common, served=True) if model is None else model
    rule = rule_for(common, model)
    window = _window(common, rule)
    if window is not None:
        _check_budgets(chosen, window)
    settings = Settings(
        rule=rule,
        window=window,
        input_limit=input_limit,
        truncation=truncation,
        wrapper=chat_wrapper(_chat_format(chat_template, common), model.tokenizer),
        with_context=not no_context,
        early_stop=early_stop,
        batch_size=batch_size(common),
    )
    scaling = None if window is None else rule.scaling(window)
    resolved = {
        "tasks": [task.name for task in chosen],
        "versions": {task.name: task.version for task in chosen},
        "limit": limit,
        "window": window,
        "input_limit": input_limit,
        "truncation": truncation,
        "chat_template": settings.wrapper.name if settings.wrapper else "none",
        "prompts": "official" if prompts is None else file_hashes([prompts])[prompts.name],
        "context": not no_context,
        "early_stop": early_stop,
        "method": rule.method,
        "scale": PER_INPUT if rule.kind == PER_INPUT or scaling is None else short_number(scaling.factor),
    }
    processes = Processes.from_environment()
    if scaling is not None:
        model.rope.set(scaling, window)
    out = common.out or default_out("longbench", model, rule, window)
    with open_run(
        "longbench",
        common,
        model,
        processes,
        settings=given(common, **own),
        resolved=resolved,
        rope={"method": rule.method, "factor": resolved["scale"]},
        data=file_hashes(folder / f"{task.name}.jsonl" for task in chosen),
        source=source,
        chooses={"tasks": False, "limit": False, "versions": True, "data": False},
        out=out,
    ) as run_folder:
        model.rope.restore()
        work: list[tuple[Task, str, list[dict[str, Any]]]] = [(t, texts[t.name], examples[t.name]) for t in chosen]
        predict(model, _typed(work), settings, run_folder, processes)
        scores = finish_run(out, processes)
    return None if scores is None else out


def _typed(work: list[tuple[Task, str, list[dict[str, Any]]]]) -> list[tuple[Task, str, list[Example]]]:
    return [(task, text, list(examples)) for task, text, examples in work]


def data_folder(data: Path | None, tasks: list[Task]) -> tuple[Path, DataSource]:
    """The folder of NAME.jsonl files: the one given, `demo`, or the cached public data set. Says which are missing."""
    if data is None:
        from e2bench.data import fetch, is_verified

        fetched = fetch("longbench")
        return fetched, DataSource(PUBLIC, "LongBench", is_verified("longbench", fetched))
    if str(data) == DEMO:
        from e2bench.tasks.demo import longbench_folder

        say("--data demo: made-up samples; their scores show that the bench works, nothing else")
        return longbench_folder(), DataSource(DEMO)
    check_folder(data, "--data takes a folder with one NAME.jsonl a task")
    missing = [task.name for task in tasks if not (data / f"{task.name}.jsonl").is_file()]
    there = sorted(path.stem for path in data.glob("*.jsonl"))
    if not there:
        raise DataError(f"{data} holds no NAME.jsonl file; --data takes a folder in LongBench's layout")
    if missing:
        raise DataError(
            f"{data} has no {missing[0]}.jsonl ({len(missing)} of {len(tasks)} tasks are missing); "
            f"give --tasks {','.join(there[:6])}{',…' if len(there) > 6 else ''}, or the whole data set"
        )
    return data, DataSource(OWN, data.resolve().name)


def _preset_limit(common: Common) -> int | None:
    """The prompt limit that a preset was published with, where the run keeps the preset's window."""
    preset = find_preset(common.model)
    own_window = common.window is None and common.scale is None and common.method is None
    return preset.input_limit if preset is not None and own_window else None


def _chat_format(given: str, common: Common) -> str:
    """A preset's own chat format where `auto` leaves the choice."""
    preset = find_preset(common.model)
    return preset.chat if preset is not None and given == "auto" else given


def _window(common: Common, rule: ScaleRule) -> int | None:
    if common.window is not None:
        return parse_length(common.window)
    return None if rule.kind == PER_INPUT else rule.window(None)


def _check_budgets(tasks: list[Task], window: int) -> None:
    """A window below a task's budget is refused before anything is generated."""
    for task in sorted(tasks, key=lambda t: -t.max_new_tokens):
        try:
            input_limit(window, task.max_new_tokens)
        except E2BenchError as error:
            raise E2BenchError(f"{task.name}: {error}") from None
