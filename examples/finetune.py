"""Fine-tune a model with E² on a text of yours, from Python, and measure every window before and after.

    python examples/finetune.py HuggingFaceTB/SmolLM2-135M texts.jsonl --train-window 2048 --out results/tuned

The same as a recipe file and `e2bench train`; from Python the settings can be computed, looped over, or swept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import e2bench
from e2bench.train.finetune import train
from e2bench.train.recipe import build_recipe


def main() -> None:
    """Train, then print perplexity at each length with the base and with the tuned weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="hub id, folder or .gguf file")
    parser.add_argument("data", help=".jsonl with a `text` field")
    parser.add_argument("--train-window", type=int, default=2048, help="R, tokens of a training row")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lengths", default="2k..32k")
    parser.add_argument("--held-out", help="documents to measure on; default: the training text")
    parser.add_argument("--out", type=Path, default=Path("results/tuned"))
    given = parser.parse_args()

    recipe = build_recipe(
        {
            "name": "my-e2",
            "base": given.base,
            "data": [{"files": [given.data], "layout": "text"}],
            "method": "e2",  # or pi, pose, none
            "g_max": 20,
            "train_window": given.train_window,
            "steps": given.steps,
            "batch_size": 8,
            "learning_rate": 1e-5,
            "warmup_steps": given.steps // 20,
            "save_every": max(1, given.steps // 2),
            "gradient_checkpointing": True,
        }
    )
    weights = given.out / "weights"
    if not train(recipe, weights):
        raise SystemExit("stopped and saved; the same command goes on")

    measured = {"lengths": given.lengths, "data": given.held_out or given.data, "docs": 2, "max_windows": 4}
    for name, model in (("base", given.base), ("e2", weights)):
        run = e2bench.run("ppl", model, **measured, scale="auto", out=given.out / name)
        cells = run.scores["cells"]
        print(name, {cell["window"]: round(cell["perplexity"], 2) for cell in cells})


if __name__ == "__main__":
    main()
