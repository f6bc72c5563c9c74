"""How far back a tuned model copies a pass key: teacher-forced tokens of the key, by scale g and position gap.

    python benchmarks/key_distance.py [--model M] [--tokens 400] [--samples 20] [--scales 1,4,8] [--gaps 0,100,400]

The prompts are short (template `e2bench` of the passkey task, keys at random depths), so that the number of tokens
hardly matters; the question is moved away from the text by a gap of positions, counted after division by g. Where a
key is copied at gap 0 and lost at a large one, the model has learned to look near alone. Gaps that would leave the
native window are left out.
Printed and stored: share of the key's tokens (pairs of digits) that the model ranks first.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from _common import write

from e2bench.experiments.passkey import build_prompt, key_of
from e2bench.models.loading import embedded_model
from e2bench.models.texts import Texts
from e2bench.tasks.passkey import E2BENCH
from e2bench.train.e2 import Draw
from e2bench.train.rotary import E2Positions


class Codec(Texts):
    """A tokenizer as `build_prompt` takes it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


def sample(tokenizer: Any, seed: int, tokens: int) -> tuple[list[int], int, list[int]]:
    """Ids of a prompt with its answer, where the question begins, where the key's tokens stand."""
    depth = random.Random(seed).random()
    key = key_of(seed, tokens, depth, 0)
    codec = Codec(tokenizer)
    text = f"{codec.decode(build_prompt(codec, E2BENCH, tokens, depth, key))} {key}."
    begins, answer = text.rindex(E2BENCH.question), text.rindex(key)
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    asked = [at for at, (first, last) in enumerate(spans) if first < answer + len(key) and last > answer]
    question = next(at for at, (first, last) in enumerate(spans) if first >= begins and last > first)
    return encoded["input_ids"], question, asked


@torch.inference_mode()
def share_copied(model: Any, positions: E2Positions, samples: list[Any], scale: int, gap: int) -> float:
    """Share of the key's tokens that have the highest logit, the question moved by `gap` scaled positions."""
    hits = total = 0
    for ids, question, key in samples:
        positions.set([Draw(scale, gap * scale, question)])
        best = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1)
        hits += sum(int(best[at - 1]) == ids[at] for at in key)
        total += len(key)
    return hits / total


def main() -> None:
    """Print and store the table."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=embedded_model())
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--scales", default="1,4,8")
    parser.add_argument("--gaps", default="0,100,200,300,400,450")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    samples = [sample(tokenizer, seed, given.tokens) for seed in range(given.samples)]
    positions = E2Positions(model)
    gaps = [int(gap) for gap in given.gaps.split(",")]
    native = model.config.max_position_embeddings
    table = {
        scale: {
            gap: round(share_copied(model, positions, samples, scale, gap), 3)
            for gap in gaps
            if given.tokens / scale + gap <= native
        }
        for scale in map(int, given.scales.split(","))
    }
    for scale, row in table.items():
        print(f"g = {scale}: " + "  ".join(f"gap {gap}: {share:.2f}" for gap, share in row.items()))
    write("key_distance", {"model": given.model.name, "tokens": given.tokens, "copied": table}, given.out)


if __name__ == "__main__":
    main()
