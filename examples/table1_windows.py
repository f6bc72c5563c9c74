"""Table 1 of your own checkpoint at several windows: one run a scale, the same weights, one report.

    python examples/table1_windows.py meta-llama/Llama-2-7b-hf --scales 1,2,4,8 --out results/mine

Each run is a folder below `--out`; give the same command again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import e2bench


def main() -> None:
    """Measure, report, and say where two windows differ for certain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id, folder, .gguf file, adapter folder or preset")
    parser.add_argument("--scales", default="1,2,4,8", help="g of each window g·L")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--data", help="folder in LongBench's layout; default: the public data set")
    parser.add_argument("--limit", type=int, help="examples a task")
    parser.add_argument("--out", type=Path, default=Path("results/mine"))
    given = parser.parse_args()

    model = e2bench.load(given.model)
    runs = [given.out / f"longbench-g{scale}" for scale in given.scales.split(",")]
    for scale, out in zip(given.scales.split(","), runs, strict=True):
        data = {"tasks": given.tasks, "data": given.data, "limit": given.limit}
        e2bench.run("longbench", model, scale=scale, **data, out=out)

    e2bench.report(given.out, given.out / "report")
    print((given.out / "report" / "table1.md").read_text(encoding="utf-8"))
    for run in runs[1:]:
        for task, row in e2bench.compare(runs[0], run)["tasks"].items():
            low, high = row["interval"] or (0, 0)
            if low > 0 or high < 0:
                print(f"{task}: {run.name} less {runs[0].name} is {row['difference']:+.1f} ({low:+.1f} to {high:+.1f})")


if __name__ == "__main__":
    main()
