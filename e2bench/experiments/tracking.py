"""`--log`: a run's numbers in TensorBoard or Weights & Biases, as other experiments of a group are followed.

Both get what `e2bench results` shows, once the run is scored. A number's name is METRIC/TASK, with its scale where a
run has several; a number that belongs to a length stands at that step, in tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2bench.experiments.numbers import Number
from e2bench.experiments.options import TRACKERS
from e2bench.experiments.stored import current_scores, experiment_of
from e2bench.extras import require
from e2bench.runs.lines import read_run
from e2bench.terminal import say

TENSORBOARD = TRACKERS[0]


def check_tracker(name: str | None) -> None:
    """Raise E2BenchError, one line, where the tracker's package is missing. None: no tracker."""
    if name is not None:
        require(name, name, f"--log {name}")


def log_run(folder: Path, tracker: str) -> None:
    """Give the scores of a finished run to a tracker, in place of what it was given of this run before."""
    numbers = list(experiment_of(folder).numbers(current_scores(folder)[0]))
    named = [(name_of(number, numbers), number) for number in numbers]
    if tracker == TENSORBOARD:
        _tensorboard(folder, named)
    else:
        _wandb(folder, named)
    say(f"logged {len(named)} numbers with {tracker}")


def name_of(number: Number, others: Sequence[Number]) -> str:
    """METRIC/TASK; with the scale where others of the same name and length differ in it."""
    alike = {other.scale for other in others if _place(other) == _place(number)}
    parts = [number.metric, number.task, f"g{number.scale:g}" if len(alike) > 1 else ""]
    return "/".join(part for part in parts if part)


def _place(number: Number) -> tuple[str, str, int | None]:
    return number.metric, number.task, number.length


def _tensorboard(folder: Path, named: Sequence[tuple[str, Number]]) -> None:
    from tensorboard.summary import Writer

    for before in (folder / TENSORBOARD).glob("events.out.tfevents.*"):
        before.unlink()
    writer = Writer(str(folder / TENSORBOARD))
    for name, number in named:
        writer.add_scalar(name, number.value, step=number.length or 0)
    writer.close()


def _wandb(folder: Path, named: Sequence[tuple[str, Number]]) -> None:
    """One W&B run: settings as its config, every number in its summary, and curves over the length."""
    import wandb

    manifest = read_run(folder)
    model = manifest.get("model")
    config = {"experiment": manifest.get("experiment"), "folder": folder.name, **_part(manifest, "settings")}
    config |= {"resolved": manifest.get("resolved"), "model": model if isinstance(model, dict) else {}}
    same = hashlib.sha256(f"{folder.name} {manifest.get('started')}".encode()).hexdigest()[:16]  # when it goes on
    run = wandb.init(project="e2bench", name=folder.name, id=same, resume="allow", dir=str(folder), config=config)
    run.define_metric("length")
    for length in sorted({number.length for _, number in named if number.length is not None}):
        values = {name: number.value for name, number in named if number.length == length}
        for name in values:
            run.define_metric(name, step_metric="length")
        run.log({"length": length, **values})
    for name, number in named:
        at = "" if number.length is None else f"/{number.length}"
        run.summary[f"{name}{at}"] = number.value
    run.finish()


def _part(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    part = manifest.get(name)
    return part if isinstance(part, dict) else {}
