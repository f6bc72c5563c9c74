"""Models that a suite makes itself: the recipe, what the suite changes in it, what that costs, and the training."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.environment import number
from e2bench.errors import DataError, E2BenchError, RunFolderError
from e2bench.experiments.forecast import Rate
from e2bench.files import read_json, read_rows
from e2bench.marked import Marked
from e2bench.suites.file import SuiteFile

if TYPE_CHECKING:
    from e2bench.train.recipe import Recipe

FOLDER = "train"  # of a suite's: a folder for each model that it trains
OF_A_TRAINING = ("recipe", "set")  # keys of a model
RESULT, LOG = "e2_config.json", "train.jsonl"  # the first is written last


@dataclass(frozen=True)
class Training:
    """name: of the model.    out: folder of the result.    line: in the suite's file."""

    name: str
    recipe: Recipe
    out: Path
    line: int

    @property
    def title(self) -> str:
        """In the plan and for `--only`."""
        return f"{FOLDER}/{self.name}"

    @property
    def is_done(self) -> bool:
        """Whether the result is there. Raises RunFolderError for one of other settings."""
        if not (self.out / RESULT).exists():
            return False
        stored = read_json(self.out / RESULT).get("settings")
        wanted = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
        for key, value in stored.items() if isinstance(stored, dict) else ():
            if wanted.get(key) != value:
                raise RunFolderError(
                    f"{self.out} was trained with {key} = {value!r}, and the suite says {wanted.get(key)!r}; "
                    "move it away, or give another --out"
                )
        return True


def read_training(file: SuiteFile, entry: Marked, name: str, out: Path) -> Training:
    """The training of a model that has `recipe:`. out: the suite's folder. Mistakes name file and line."""
    from e2bench.train.recipe import load_recipe

    changes = entry.get("set", {})
    if not isinstance(changes, dict):
        raise file.refuse(entry.lines["set"], f"`set:` is {changes!r}; it must hold `key: value` pairs of the recipe")
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    with file.at(entry.lines["recipe"]):
        recipe = load_recipe(str(entry["recipe"]), [f"name={json.dumps(name)}", *overrides])
    return Training(name, recipe, out / FOLDER / name, entry.line)


def check(training: Training, *, weights: bool) -> None:
    """Refuse what cannot be trained here: base or data is missing, or several processes would begin it."""
    from e2bench.train.loading import check_sources

    check_sources(training.recipe, weights=weights, data=weights)
    if weights and number("WORLD_SIZE", 1) > 1:
        raise E2BenchError(
            f"{training.title} is not trained yet, and several processes run this suite: train it first "
            f"(torchrun … -m e2bench train … --out {training.out}), or start one process"
        )


def work_off_training(training: Training) -> None:
    """Train, on from the newest checkpoint. Raises KeyboardInterrupt where a signal ended it: it is saved."""
    from e2bench.extras import require
    from e2bench.terminal import say

    require("accelerate", "train", "training")
    from e2bench.train.finetune import train

    if not train(training.recipe, training.out):
        say(f"stopped and saved in {training.out}; the same command goes on from there")
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Cost:
    """steps, done: of the training.    flops: of all steps.    gib: of memory, estimated.    disk: bytes.

    rate: operations a second that were measured on a model of about that size; None where there is none.
    """

    steps: int
    done: int
    tokens: int
    flops: float
    gib: float
    disk: int
    rate: Rate | None


def cost_of(training: Training) -> Cost:
    """What the training takes, without weights or data."""
    from e2bench.train.callbacks import complete_checkpoints, step_of
    from e2bench.train.plan import GIB, make_plan

    plan = make_plan(training.recipe)
    steps = training.recipe.steps
    done = steps if training.is_done else max(map(step_of, complete_checkpoints(training.out)), default=0)
    return Cost(
        steps,
        done,
        plan.tokens_per_step * steps,
        plan.operations * plan.tokens_per_step * steps,
        (plan.state_bytes + plan.activation_bytes) / GIB,
        plan.disk_bytes,
        Rate(plan.rate.operations_per_s, f"{plan.rate.what} on {plan.rate.machine}") if plan.rate else None,
    )


def measured_rate(training: Training, cost: Cost) -> float | None:
    """Operations a second of what was trained so far, by its log; None where there is none."""
    try:
        rows: list[dict[str, Any]] = read_rows(training.out / LOG) if (training.out / LOG).is_file() else []
    except DataError:  # a torn log tells no rate
        return None
    last = rows[-1] if rows else {}
    seconds, step = last.get("seconds"), last.get("step")
    if not isinstance(seconds, int | float) or not isinstance(step, int) or seconds <= 0:
        return None
    return cost.flops * step / cost.steps / seconds
