"""`e2bench quickstart`: the whole bench in miniature on the embedded model, offline, ending in a report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from e2bench.commands import attention, longbench, passkey, ppl
from e2bench.commands.score import show_run
from e2bench.options import Common
from e2bench.processes import Processes
from e2bench.provenance import DEMO
from e2bench.reporting import write_report
from e2bench.session import check_model, check_scale, load_model, say

LENGTHS = "512,1k,2k,4k,8k"  # L to 16 L of the embedded model
STEPS = 5


def run(common: Common) -> None:
    """LongBench demo data, perplexity on held-out files, a passkey grid, attention maps, the report."""
    began = time.monotonic()
    out = common.out or Path("results") / "quickstart"
    common = replace(common, scale=common.scale or "auto")
    check_scale(common)
    check_model(common)
    model = load_model(common)
    _say(1, "LongBench's 21 tasks on demo data (the scores show that the bench works, nothing else)")
    answered = longbench.run(
        replace(common, out=out / "longbench", window=common.window or "2k"),
        tasks="all",
        data=Path(DEMO),
        limit=None,
        input_limit=None,
        truncation="official",
        chat_template="auto",
        prompts=None,
        no_context=False,
        early_stop=True,
        model=model,
    )
    show_run(answered)
    _say(2, "perplexity on Python source files the model was not trained on: g chosen per length, then g = 1")
    _perplexity(replace(common, out=out / "ppl"), model, extrapolate=False)
    _perplexity(replace(common, out=out / "extrapolate", scale=None), model, extrapolate=True)
    _say(3, "passkey retrieval")
    found = passkey.run(
        replace(common, out=out / "passkey"),
        lengths="512,1k,2k,4k",
        depths=5,
        trials=2,
        early_stop=True,
        model=model,
    )
    show_run(found)
    _say(4, "attention of an answer's tokens over a long input")
    maps = attention.run(
        replace(common, out=out / "attention"),
        lengths="512,1k,2k",
        data=None,
        depth="0.5",
        trials=1,
        keys="short",
        scattered=False,
        layers="all",
        heads="all",
        reduction="max",
        keep_heads=False,
        model=model,
    )
    show_run(maps)
    if Processes.from_environment().rank:
        return
    _say(5, "the report")
    paths = write_report(out, out / "report")
    say(f"done in {time.monotonic() - began:.0f} s; open {out / 'report' / 'index.html'}, or look at:")
    for path in paths:
        if path.suffix == ".png" or path.name in ("table1.csv", "table2.csv", "table3.csv"):
            say(f"  {path}")


def _perplexity(common: Common, model: Any, *, extrapolate: bool) -> None:
    measured = ppl.run(
        common,
        lengths=LENGTHS,
        protocol="press",
        stride=256,
        data=None,
        docs=2,
        min_tokens=None,
        doc_tokens="longest",
        max_windows=4,
        extrapolate=extrapolate,
        dry_run=False,
        model=model,
    )
    show_run(measured)


def _say(step: int, what: str) -> None:
    say("")
    say(f"{step} of {STEPS}: {what}")
