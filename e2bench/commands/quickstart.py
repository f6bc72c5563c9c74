"""`e2bench quickstart`: the whole bench in miniature on the embedded model, offline, ending in a report."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from e2bench.commands import longbench, passkey, ppl
from e2bench.data import cache_folder
from e2bench.options import Common
from e2bench.report import write_report
from e2bench.session import say
from e2bench.tasks.demo import corpus_file, write_longbench

LENGTHS = "512,1k,2k,4k,8k"  # L to 16 L of the embedded model


def run(common: Common) -> None:
    """LongBench demo data, perplexity on held-out files, a passkey grid, the report."""
    began = time.monotonic()
    out = common.out or Path("results") / "quickstart"
    common = replace(common, scale=common.scale or "auto")
    data = write_longbench(cache_folder() / "demo" / "longbench")
    say("1 of 4: LongBench's 21 tasks on demo data (the scores show that the bench works, nothing else)")
    longbench.run(
        replace(common, out=out / "longbench", window=common.window or "2k"),
        tasks="all",
        data=data,
        limit=None,
        input_limit=None,
        truncation="official",
        chat_template="auto",
        prompts=None,
        no_context=False,
        early_stop=True,
    )
    say("2 of 4: perplexity on Python source files the model was not trained on, g chosen per length")
    ppl.run(
        replace(common, out=out / "ppl"),
        lengths=LENGTHS,
        protocol="press",
        stride=256,
        data=str(corpus_file()),
        docs=2,
        min_tokens=None,
        doc_tokens="longest",
        max_windows=4,
        extrapolate=False,
        dry_run=False,
    )
    say("3 of 4: passkey retrieval")
    passkey.run(replace(common, out=out / "passkey"), lengths="512,1k,2k,4k", depths=5, trials=2, early_stop=True)
    say("4 of 4: the report")
    paths = write_report(out, out / "report")
    pictures = [path for path in paths if path.suffix in (".png", ".html") or path.name in ("table1.csv", "table2.csv")]
    say(f"done in {time.monotonic() - began:.0f} s; open {out / 'report' / 'index.html'}, or look at:")
    for path in pictures:
        say(f"  {path}")
