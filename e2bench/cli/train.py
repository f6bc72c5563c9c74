"""`e2bench train`."""

from __future__ import annotations

from pathlib import Path

from e2bench.cli.options import WITHOUT_DRY_RUN
from e2bench.environment import check_launcher, number
from e2bench.experiments.loading import quiet_bars
from e2bench.extras import require
from e2bench.terminal import quoted, say_next


def run(
    recipe: str,
    overrides: list[str],
    *,
    dry_run: bool = False,
    profile: bool = False,
    out: Path | None = None,
    fresh: bool = False,
) -> None:
    """Plan, profile or run a training. recipe: the path of a YAML file or the name of a packaged recipe.

    Raises KeyboardInterrupt after a run that a signal ended: its last step is saved, the same command goes on from
    there.
    """
    require("accelerate", "train", "training")
    check_launcher()
    quiet_bars()
    from rich.console import Console
    from rich.table import Table

    from e2bench.train.finetune import processes_started, train
    from e2bench.train.loading import check_sources
    from e2bench.train.plan import make_plan
    from e2bench.train.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("results") / "train" / loaded.name
    console = Console(quiet=number("RANK") > 0)  # one of several processes speaks
    check_sources(loaded, weights=not dry_run, data=not (dry_run or profile))
    table = Table("plan", loaded.name, box=None)
    for row in make_plan(loaded, processes_started()).rows():
        table.add_row(*row)
    console.print(table)
    if dry_run:
        say_next(WITHOUT_DRY_RUN)
        return
    if profile:
        from e2bench.train.profiling import write_profile

        console.print(write_profile(loaded, folder))
        say_next(f"e2bench report {quoted(folder)} draws Figure 1")
    elif train(loaded, folder, fresh=fresh):
        console.print(f"trained: {folder}")
        say_next(
            f"e2bench ppl --model {quoted(folder)}", f"e2bench export --model {quoted(folder)} --scale G --out DIR"
        )
    else:
        console.print(f"stopped and saved in {folder}; the same command goes on from there")
        raise KeyboardInterrupt
