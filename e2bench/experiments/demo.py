"""`--data demo`: samples that come with e2bench, in the layout of the benchmark that they stand for."""

from __future__ import annotations

from pathlib import Path

from e2bench.data.fetch import cache_folder
from e2bench.terminal import say


def demo_folder(benchmark: str) -> Path:
    """The demo samples of a benchmark in the cache, written anew each time. Says what they are."""
    from e2bench.tasks.demo import write_longbench
    from e2bench.tasks.demo_choices import write_longbench2, write_short

    writers = {"longbench": write_longbench, "longbench2": write_longbench2, "short": write_short}
    say("--data demo: made-up samples; their scores show that the bench works, nothing else")
    return writers[benchmark](cache_folder() / "demo" / benchmark)
