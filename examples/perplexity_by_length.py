"""Perplexity by length, several ways of scaling compared: numbers, a CSV and a figure, from the library alone.

    python examples/perplexity_by_length.py MODEL TEXTS.jsonl --lengths 4k..32k --out ppl

`e2bench ppl` does the same with resume, batches and many GPUs; start here to measure something of your own per token.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from e2bench.data.corpus import Chosen, choose_documents
from e2bench.experiments.documents import open_corpus
from e2bench.experiments.windows import Protocol
from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.rope.methods import RopeScaling, scale_for_window
from e2bench.rope.windows import parse_lengths

METHODS = ("none", "linear", "ntk", "yarn")


def perplexity(
    model: Model, documents: list[Chosen], length: int, scaling: RopeScaling, tokens: int, stride: int
) -> float:
    """Protocol press over the first `tokens` tokens of each document: each token but the first is scored once."""
    nats, scored = 0.0, 0
    with model.under(scaling, length):
        for document in documents:
            ids = torch.tensor([document.ids[:tokens]])
            for window in Protocol("press", stride).windows(ids.shape[1], length):
                # (1, scored tokens) in nats
                nll = model.token_nll(ids[:, window.start : window.end], first=window.first - window.start)
                nats, scored = nats + float(nll.double().sum()), scored + nll.numel()
    return math.exp(nats / scored)


def main() -> None:
    """Measure every method at every length; write `OUT.csv` and `OUT.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help=".jsonl with a `text` field, .txt, .parquet, or a folder of them")
    parser.add_argument("--lengths", default="4k..32k")
    parser.add_argument("--docs", type=int, default=4)
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--out", default="ppl")
    given = parser.parse_args()

    model = Model.load(ModelSpec(model=given.model))
    lengths = parse_lengths(given.lengths)
    documents = choose_documents(open_corpus(given.data), model.encode, min_tokens=lengths[-1], docs=given.docs, seed=0)
    rows = []
    for method in METHODS:
        for length in lengths:
            g = scale_for_window(length, model.native_window)
            scaling = RopeScaling(method, 1 if method == "none" else g)
            value = perplexity(model, documents, length, scaling, lengths[-1], given.stride)
            rows.append((method, length, scaling.factor, value))
            print(f"{method:>7}  {length:>7,} tokens  g = {scaling.factor:g}  perplexity {value:.3f}", flush=True)

    with Path(f"{given.out}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("method", "length", "scale", "perplexity"), *rows])
    for method in METHODS:
        own = [row for row in rows if row[0] == method]
        plt.plot([row[1] for row in own], [row[3] for row in own], marker="o", label=method)
    plt.xscale("log", base=2)
    plt.xlabel("length (tokens)")
    plt.ylabel("perplexity (press)")
    plt.legend()
    plt.savefig(f"{given.out}.png", dpi=150)


if __name__ == "__main__":
    main()
