"""Perplexity over sliding windows: every document at every length, the scale chosen per length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.data.corpus import choose_documents
from e2bench.data.source import DEMO, DataSource
from e2bench.errors import E2BenchError
from e2bench.experiments.base import Experiment, Line, Plan, Sample, default_folder
from e2bench.experiments.documents import corpus_source, open_corpus
from e2bench.experiments.grid import cell_part, cell_samples, finished_lines, grid_facts, grid_of, grouped, named
from e2bench.experiments.windows import PROTOCOLS, Protocol, cells_of, items_of, measuring, running_note, together
from e2bench.rope.windows import Scale, ScaleRule, parse_length, parse_lengths, short_length
from e2bench.settings import setting
from e2bench.terminal import say

if TYPE_CHECKING:
    from e2bench.data.corpus import Document
    from e2bench.experiments.options import Common
    from e2bench.models.protocols import Generator, Scorer

LONGEST, ALL = "longest", "all"
DEMO_DOCS, DEMO_WINDOWS = 2, 2  # 4k..64k in minutes on two cores; every window of two documents would take hours


def parse_doc_tokens(text: str) -> int | str:
    """`longest`, `all`, or a length in tokens."""
    return text if text in (LONGEST, ALL) else parse_length(text)


@dataclass(frozen=True)
class Perplexity(Experiment):
    """Sliding-window perplexity at every length and scale."""

    name: ClassVar[str] = "ppl"
    about: ClassVar[str] = "Sliding-window perplexity, the scale chosen per length."
    examples: ClassVar[tuple[str, ...]] = (
        "e2bench ppl --lengths 512,1k --max-windows 2",
        "e2bench ppl --model meta-llama/Llama-2-7b-hf --data proof-pile --lengths 4k..64k --method YaRN",
    )
    needs: ClassVar[str] = "Scorer"
    several_scales: ClassVar[bool] = True
    agree: ClassVar[Mapping[str, bool]] = {"grid": True, "data": False}  # a line's document is a hash of its text
    advice: ClassVar[Mapping[str, str]] = {
        "doc_tokens": "fix the documents with --doc-tokens and --min-tokens to add lengths to a run"
    }
    implied: ClassVar[Mapping[str, Any]] = {"token_losses": False}
    unit: ClassVar[str] = "nats a token (lower is better)"
    factor: ClassVar[float] = 1
    demo_text: ClassVar[str] = "Python's standard library"
    amount: ClassVar[str] = "documents"
    cells: ClassVar[str] = "cells"
    cell_needs: ClassVar[tuple[str, ...]] = ("window", "scale", "perplexity")
    columns: ClassVar[Mapping[str, str]] = {
        "window": "length",
        "method": "method",
        "scale": "g",
        "perplexity": "perplexity",
        "interval": "95 % interval",
        "context_perplexity": "context ppl",
        "context_share": "gained",
        "documents": "documents",
        "scored_tokens": "tokens",
    }
    fractions: ClassVar[Sequence[str]] = ("context_share",)
    shows_samples: ClassVar[bool] = False

    lengths: tuple[int, ...] = setting(
        "4k..64k", "Windows in tokens: 4k..64k doubles, commas list.", parse=parse_lengths, lines="lengths"
    )
    protocol: str = setting("press", "press, truncate, window-mean or yarn.", choices=PROTOCOLS)
    stride: int = setting(256, "Tokens between windows (S).", minimum=1)
    data: str | None = setting(None, "File or folder of documents, proof-pile, or a hub id.")
    docs: int | None = setting(None, "How many documents. Default: all, up to 128.", minimum=1, lines="documents")
    min_tokens: int | None = setting(
        None, "Of a document. Default: the longest length.", parse=parse_length, lines="documents"
    )
    doc_tokens: int | str = setting(
        LONGEST, "Used of a document: longest (length), all or a number.", parse=parse_doc_tokens
    )
    max_windows: int | None = setting(None, "Only the last N windows of each document.", minimum=1)
    token_losses: bool = setting(
        False,
        "Store every token's loss; scores also tell the perplexity of tokens that need the long context.",
        flags=("--token-losses",),
    )
    extrapolate: bool = setting(False, "Scale 1 at every length.", flags=("--extrapolate",))

    def check(self, common: Common) -> None:
        """Refuse a stride that fits no window, and a scale beside `--extrapolate`."""
        super().check(common)
        if self.stride >= self.lengths[0]:
            raise E2BenchError(
                f"stride {self.stride} does not fit the shortest length {self.lengths[0]}; it must lie below it"
            )
        if self.token_losses and self.protocol != "press":
            raise E2BenchError(
                f"--token-losses compares the same tokens at every length, which --protocol {self.protocol} does not "
                "score; leave one of them out"
            )
        if self.extrapolate and common.scale not in (None, Scale("fixed", (1.0,))):
            raise E2BenchError(f"--extrapolate reads every length at scale 1; leave --scale {common.scale} out")

    def inputs(self, common: Common) -> tuple[DataSource, Iterator[Document]]:
        """The documents, which are read when they are chosen from."""
        source = corpus_source(self.data)
        return source, open_corpus(self.data, source)

    def rule(self, model: Generator, common: Common) -> ScaleRule:
        """With `--extrapolate` scale 1 at every length: does the window grow by itself?"""
        return model.rule(Scale("fixed", (1.0,)) if self.extrapolate else common.scale, common.method)

    def plan(
        self, model: Scorer, rule: ScaleRule, common: Common, inputs: tuple[DataSource, Iterator[Document]]
    ) -> Plan:
        """Every (document, length, scale)."""
        from e2bench.models.memory import require_memory

        source, documents = inputs
        docs, max_windows = self.docs, self.max_windows
        if source.kind == DEMO:
            docs, max_windows = docs or DEMO_DOCS, max_windows or DEMO_WINDOWS
            self._say_demo(docs, max_windows)
        grid = grid_of(self.lengths, rule)
        longest = self.lengths[-1]
        used = None if self.doc_tokens == ALL else longest if self.doc_tokens == LONGEST else int(self.doc_tokens)
        bos = model.tokenizer.bos_token_id if self.protocol == "yarn" else None
        protocol = Protocol(self.protocol, self.stride, bos, max_windows)
        chosen = choose_documents(
            documents,
            lambda text: model.encode(text, special_tokens=self.protocol != "yarn"),
            min_tokens=self.min_tokens or longest,
            docs=docs,
            seed=common.seed,
            used=used,
        )
        cells = cells_of(chosen, grid, protocol, used)
        say(
            f"documents: {len(chosen)}, lengths and scales: {len(grid)}, "
            f"windows: {sum(len(c.windows) for c in cells):,}, {sum(c.cost for c in cells):,} tokens to read; "
            f"{model.scoring_bytes(longest) / 2**30:.2f} GiB beside the weights"
        )
        require_memory(model, longest, model.scoring_bytes(longest))
        return Plan(
            items=items_of(cells),
            measure=measuring(model, protocol, common.batch_size, keep_losses=self.token_losses),
            batch_size=together(cells),
            note=running_note(),
            part=lambda item: cell_part(item.payload.window, item.payload.scaling),
            longest=longest,
            needed=model.scoring_bytes(longest),
            resolved={
                "grid": named(grid),
                "lengths": list(self.lengths),
                "protocol": self.protocol,
                "stride": self.stride,
                "bos": bos,
                "documents": [c.document.id for c in chosen],
                "doc_tokens": used or ALL,
                "max_windows": max_windows,
                "token_losses": self.token_losses,
            },
            source=source,
            data={c.document.where.rsplit("/", 1)[-1]: c.document.id for c in chosen},
            facts={"extrapolate": True} if self.extrapolate else {},
            **grid_facts(grid, rule, common, self.name),
        )

    def _say_demo(self, docs: int, max_windows: int) -> None:
        """The demo documents show what a window is worth in minutes, not in the hours of the whole protocol."""
        say(
            f"{'no --data given' if self.data is None else '--data demo'}: demo documents (the installed Python's own "
            f"source files); scored of each of {docs}: its last {max_windows} windows (stride {self.stride}); "
            "--data FILE, --docs and --max-windows for more"
        )

    def folder_name(self, model: str, rule: ScaleRule, plan: Plan) -> str:
        """`extrapolate-…` for such a run."""
        return default_folder("extrapolate" if self.extrapolate else self.name, model, rule)

    # stored lines

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Perplexity of each (window, scale) with a bootstrap 95 % interval over documents."""
        from e2bench.experiments.context_tokens import context_scores

        lines = finished_lines(folder, cls.name)
        context = context_scores(folder, lines)
        return {
            "cells": [
                {**_scored(window, scale, rows), **context.get((window, scale), {})}
                for (window, scale), rows in grouped(lines, "window", "scale")
            ]
        }

    @classmethod
    def closing(cls, scores: Mapping[str, Any]) -> list[str]:
        """What the context tokens are."""
        cells = scores["cells"]
        if not any("context_tokens" in cell for cell in cells):
            return []
        ends = f"{short_length(cells[0]['window'])} to {short_length(cells[-1]['window'])}"
        return [
            f"context ppl: over {cells[-1]['context_tokens']:,} tokens whose loss falls by more than 2 nats, below 2, "
            f"from {ends} (LongPPL's thresholds, the model as its own judge: not LongPPL). "
            "gained: the share of all tokens that a length gains so."
        ]

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """A document at a length: its nats a token."""

        def made(line: Line) -> dict[str, Any]:
            tokens = line["scored_tokens"]
            return {"score": line["nll_sum"] / tokens, "reference": tokens, "prediction": ""}

        return cell_samples(lines, ("document",), "window", made, strict=strict)


def _scored(window: int, scale: float, rows: Sequence[Line]) -> dict[str, Any]:
    """One cell of scores.json."""
    import numpy as np

    from e2bench.scoring.statistics import perplexity_of, ratio_interval

    over_windows = rows[0]["protocol"] in ("window-mean", "yarn")
    sums, counts = ("mean_sum", "windows") if over_windows else ("nll_sum", "scored_tokens")
    nats = np.array([row[sums] for row in rows])
    weight = np.array([row[counts] for row in rows])
    bounds = ratio_interval(nats, weight)
    return {
        "window": window,
        "scale": scale,
        "method": rows[0]["method"],
        "protocol": rows[0]["protocol"],
        "perplexity": perplexity_of(nats.sum() / weight.sum()),
        "interval": bounds and [perplexity_of(bound) for bound in bounds],
        "documents": len(rows),
        "scored_tokens": int(sum(row["scored_tokens"] for row in rows)),
    }
