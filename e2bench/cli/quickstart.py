"""`e2bench quickstart`: the whole bench in miniature on the embedded model, offline, ending in a report."""

from __future__ import annotations

import time
from pathlib import Path

from e2bench.cli.score import show_run
from e2bench.data.source import DEMO
from e2bench.experiments.attention import Attention
from e2bench.experiments.base import Experiment
from e2bench.experiments.loading import check_model, load_model
from e2bench.experiments.longbench import LongBench
from e2bench.experiments.options import Common
from e2bench.experiments.passkey import PassKey
from e2bench.experiments.perplexity import Perplexity
from e2bench.experiments.run import run_experiment
from e2bench.reporting import write_report
from e2bench.rope.windows import Scale
from e2bench.runs.processes import Processes
from e2bench.terminal import say

WINDOW = 2048  # of LongBench
WINDOWS = {"lengths": "512,1k,2k,4k,8k", "docs": 2, "max_windows": 4}  # L to 16 L of the embedded model
STEPS = 5


def run(common: Common) -> None:
    """LongBench demo data, perplexity on held-out files, a passkey grid, attention maps, the report."""
    began = time.monotonic()
    out = common.out or Path("results") / "quickstart"
    common = common.replaced(scale=common.scale or Scale("auto"))
    check_model(common)
    model = load_model(common)

    def measured(name: str, experiment: Experiment, shared: Common = common) -> None:
        show_run(run_experiment(experiment, shared.replaced(out=out / name), model))

    _say(1, "LongBench's 21 tasks on demo data (the scores show that the bench works, nothing else)")
    measured("longbench", LongBench.read({"data": DEMO}), common.replaced(window=common.window or WINDOW))
    _say(2, "perplexity on Python source files the model was not trained on: g chosen per length, then g = 1")
    measured("ppl", Perplexity.read(WINDOWS))
    measured("extrapolate", Perplexity.read({**WINDOWS, "extrapolate": True}), common.replaced(scale=None))
    _say(3, "passkey retrieval")
    measured("passkey", PassKey.read({"lengths": "512,1k,2k,4k", "depths": 5, "trials": 2}))
    _say(4, "attention of an answer's tokens over a long input")
    measured("attention", Attention.read({"lengths": "512,1k,2k", "keys": "short", "reduction": "max"}))
    if Processes.from_environment().rank:
        return
    _say(5, "the report")
    paths = write_report(out, out / "report")
    say(f"done in {time.monotonic() - began:.0f} s; open {out / 'report' / 'index.html'}, or look at:")
    for path in paths:
        if path.suffix == ".png" or path.name in ("table1.csv", "table2.csv", "table3.csv"):
            say(f"  {path}")


def _say(step: int, what: str) -> None:
    say("")
    say(f"{step} of {STEPS}: {what}")
