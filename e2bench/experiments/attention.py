"""Attention of an answer's tokens over a long input (the paper's Figure 6), exactly and without any N × N matrix.

One JSON object of random key-value pairs stands at a chosen depth of a long text, the question for a value at the end.
The answer is generated as always (SDPA over a cache); beside it, every attention layer computes softmax(q·Kᵀ) for the
one query that chooses the next token, and that row is reduced before the next layer runs. Row i of a map is the
attention with which generated token i was chosen: its query is the token before it.

Shapes: N input tokens, T generated tokens, H query heads, K key-value heads, D head dimension.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.data.source import DataSource
from e2bench.errors import E2BenchError, ModelError, UnknownName
from e2bench.experiments.base import Experiment, Line, Plan, Sample
from e2bench.experiments.documents import corpus_source, open_corpus
from e2bench.experiments.grid import (
    cell_label,
    cell_part,
    cell_samples,
    finished_lines,
    grid_facts,
    grid_of,
    grouped,
    named,
)
from e2bench.experiments.pairs import STYLES, WORDING, Cell, closed, long_texts, make_cell
from e2bench.files import write_atomic
from e2bench.models.protocols import AttentionSource, Prompt
from e2bench.prompts.wording import Wording
from e2bench.rope.windows import ScaleRule, parse_lengths, short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.runs.lines import row_id
from e2bench.settings import setting
from e2bench.terminal import say

if TYPE_CHECKING:
    import numpy as np

    from e2bench.data.corpus import Document
    from e2bench.experiments.options import Common
    from e2bench.models.recording import Recorder, View
    from e2bench.runs.folder import RunFolder

REDUCTIONS = ("mean", "max")
TOP_HEADS = 20
SHOWN_CHARS = 300


def parse_depths(text: str) -> tuple[float, ...]:
    """Places of the asked value in the text: numbers from 0 (start) to 1 (end), separated by commas."""
    try:
        places = tuple(float(part) for part in text.split(","))
    except ValueError:
        places = (-1.0,)
    if not all(0 <= place <= 1 for place in places) or len(set(places)) < len(places):
        raise E2BenchError(f"depth {text!r} is not possible; give different numbers from 0 (start) to 1 (end)")
    return places


def parse_indices(text: str) -> tuple[int, ...] | None:
    """Layers or heads of `all`, `3`, `0,4` or `8..11`, counted from 0; None for all."""
    if text == "all":
        return None
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("..")
        if not first.isdigit() or not (last or first).isdigit():
            raise E2BenchError(f"{part!r} is not a number; give all, 3, 0,4 or 8..11")
        chosen += range(int(first), int(last or first) + 1)
    if not chosen:
        raise E2BenchError(f"{text!r} runs backwards; write the smaller number first")
    return tuple(sorted(set(chosen)))


def check_indices(chosen: Sequence[int] | None, kind: str, count: int) -> None:
    """Raise UnknownName for a layer or head that the model does not have."""
    for index in chosen or ():
        if index >= count:
            raise UnknownName(kind, str(index), [], hint=f"the model has {kind}s 0 … {count - 1}")


@dataclass(frozen=True)
class Attention(Experiment):
    """Figure 6: attention of an answer's tokens over a long input with hidden key-value pairs."""

    name: ClassVar[str] = "attention"
    about: ClassVar[str] = "Figure 6: attention of an answer's tokens over a long input with hidden key-value pairs."
    examples: ClassVar[tuple[str, ...]] = ("e2bench attention --lengths 512,1k --out results/attention",)
    needs: ClassVar[str] = "AttentionSource"
    agree: ClassVar[Mapping[str, bool]] = {"grid": True}
    wordings: ClassVar[tuple[Wording, ...]] = (WORDING,)
    unit: ClassVar[str] = "share of attention on the gold span, %"
    demo_text: ClassVar[str] = "Python's standard library"
    amount: ClassVar[str] = "trials"
    cells: ClassVar[str] = "lengths"
    cell_needs: ClassVar[tuple[str, ...]] = ("length",)
    columns: ClassVar[Mapping[str, str]] = {
        "length": "length",
        "scale": "g",
        "success": "answered",
        "gold_share": "attention on gold",
        "input_share": "gold of input",
        "trials": "trials",
    }
    fractions: ClassVar[Sequence[str]] = ("success", "gold_share", "input_share")

    lengths: tuple[int, ...] = setting(
        "8k..64k", "Input and answer in tokens: 8k..64k doubles, commas list.", parse=parse_lengths, lines="grid"
    )
    data: str | None = setting(None, "File or folder of documents around the pairs. Default: demo text.")
    depth: tuple[float, ...] = setting(
        "0.5", "Place of the pairs: 0 (start) to 1 (end), commas list.", parse=parse_depths, lines="depths"
    )
    trials: int = setting(1, "Questions a length and depth.", minimum=1, lines="trials")
    keys: str = setting("uuid", "uuid (the paper's) or short (4 hex digits).", choices=STYLES)
    scattered: bool = setting(False, "The three pairs apart, not in one object.", flags=("--scattered",))
    layers: tuple[int, ...] | None = setting("all", "In the map: all, 3, 0,4 or 8..11.", parse=parse_indices)
    heads: tuple[int, ...] | None = setting("all", "In the map: all, 3, 0,4 or 8..11.", parse=parse_indices)
    reduction: str = setting("mean", "mean or max over layers and heads.", choices=REDUCTIONS)
    keep_heads: bool = setting(False, "Store every chosen head's rows too.", flags=("--keep-heads",))

    def inputs(self, common: Common) -> tuple[DataSource, Iterator[Document]]:
        """The text around the pairs."""
        if self.data is None:
            say("no --data given: the text is the demo documents (the installed Python's own source files)")
        source = corpus_source(self.data)
        return source, open_corpus(self.data, source)

    def plan(
        self, model: AttentionSource, rule: ScaleRule, common: Common, inputs: tuple[DataSource, Iterator[Document]]
    ) -> Plan:
        """Every trial at every depth of every length."""
        from e2bench.models.memory import require_memory
        from e2bench.models.recording import View

        check_indices(self.layers, "layer", model.layers)
        check_indices(self.heads, "head", model.heads)
        view = View(self.layers, self.heads, self.reduction, self.keep_heads)
        longest = self.lengths[-1]
        require_memory(model, longest)
        grid = grid_of(self.lengths, rule)
        texts = long_texts(inputs[1], model, longest, self.trials)
        cells = [
            make_cell(
                model,
                *texts[trial % len(texts)],
                length=length,
                depth=place,
                trial=trial,
                scaling=scaling,
                seed=common.seed,
                style=self.keys,
                scattered=self.scattered,
            )
            for length, scaling in grid
            for place in self.depth
            for trial in range(self.trials)
        ]
        return Plan(
            items=items_of(cells),
            measure=recording_of(model, cells, view),
            batch_size=lambda item: 1,
            note=_note,
            part=lambda item: cell_part(item.payload.length, item.payload.scaling),
            resolved={
                "grid": named(grid),
                "depths": list(self.depth),
                "trials": self.trials,
                "seed": common.seed,
                "keys": self.keys,
                "scattered": self.scattered,
                "layers": self.layers and list(self.layers),
                "heads": self.heads and list(self.heads),
                "reduction": self.reduction,
                "keep_heads": self.keep_heads,
                "chat_template": "none",
            },
            source=inputs[0],
            data={"documents": ",".join(dict.fromkeys(name for name, _ in texts))},
            **grid_facts(grid, rule, common, self.name),
        )

    # stored lines

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Success, and attention on the gold span against its share of the input, for each (length, scale)."""
        from e2bench.scoring.statistics import mean

        lengths = []
        for (length, scale), rows in grouped(finished_lines(folder, cls.name), "length", "scale"):
            lengths.append(
                {
                    "length": length,
                    "scale": scale,
                    "success": sum(bool(row["success"]) for row in rows) / len(rows),
                    "gold_share": mean([row["gold_share"] for row in rows]),
                    "input_share": mean([row["input_share"] for row in rows]),
                    "top_heads": rows[0]["top_heads"],
                    "trials": len(rows),
                }
            )
        return {"lengths": lengths}

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """An answer; what is compared is its attention on the gold span."""

        def made(line: Line) -> dict[str, Any]:
            texts = {"reference": line["answer"], "prediction": str(line["pred"]), "label": cell_label(line)}
            return {"score": float(line["gold_share"]), "grade": 100 * bool(line["success"]), **texts}

        return cell_samples(lines, ("depth", "trial"), "length", made, strict=strict)


# measuring


def items_of(cells: Sequence[Cell]) -> list[Item]:
    """One item a cell."""
    return [Item("attention", row_id(c.coordinates), c.length, c.coordinates["scale"], c) for c in cells]


def recording_of(model: AttentionSource, cells: Sequence[Cell], view: View) -> Measure:
    """What answers a cell and records its rows: a line in `attention.jsonl` and an `.npz` file each."""
    import numpy as np

    from e2bench.models.recording import Recorder

    def measure(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        for item in batch:
            cell: Cell = item.payload
            recorder = Recorder(view, layers=model.layers, heads=model.heads, inputs=len(cell.ids), gold=cell.gold)
            with model.recording(recorder):
                prompt = Prompt(cell.ids, cell.budget, min_new_tokens=1, settled=closed)
                ((_, generation),) = model.generate([prompt], cell.scaling)
            arrays = recorder.arrays()
            if len(arrays["rows"]) != len(generation.ids):
                raise ModelError(f"{len(arrays['rows'])} attention rows for {len(generation.ids)} generated tokens")
            name = npz_name(cell, cells)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
            write_atomic(folder.path / name, buffer.getvalue())
            yield item, _line(model, cell, view, recorder, arrays["per_head"], generation.ids, generation.text, name)

    return measure


def npz_name(cell: Cell, cells: Sequence[Cell]) -> str:
    """attention-LENGTH.npz; what varies besides the length is part of the name."""
    parts = [f"attention-{cell.length}"]
    if len({c.scaling for c in cells if c.length == cell.length}) > 1:
        parts.append(f"g{short_number(cell.scaling.factor)}")
    if len({c.depth for c in cells}) > 1:
        parts.append(f"depth{cell.depth:g}")
    if cell.trial:
        parts.append(f"trial{cell.trial}")
    return "-".join(parts) + ".npz"


def _line(
    model: AttentionSource,
    cell: Cell,
    view: View,
    recorder: Recorder,
    per_head: np.ndarray,
    ids: Sequence[int],
    text: str,
    npz: str,
) -> Row:
    import numpy as np

    ranked = sorted(np.ndindex(per_head.shape), key=lambda at: -per_head[at])[:TOP_HEADS]
    fed = model.decode(cell.ids)
    return {
        **cell.coordinates,
        "tokens": len(cell.ids),
        "method": cell.scaling.method,
        "gold": list(cell.gold),
        "answer": cell.answer,
        "pred": text,
        "success": text.split('"')[0].strip() == cell.answer,
        "layers": "all" if view.layers is None else list(view.layers),
        "heads": "all" if view.heads is None else list(view.heads),
        "reduction": view.reduction,
        "gold_share": float(np.mean(recorder.shares)),
        "input_share": (cell.gold[1] + 1 - cell.gold[0]) / len(cell.ids),
        "top_heads": [[int(layer), int(head), float(per_head[layer, head])] for layer, head in ranked],
        "npz": npz,
        "question_tokens": cell.question_tokens,
        "new_tokens": len(ids),
        "generated": [model.tokenizer.decode([token]) for token in ids],
        "source": cell.document,
        "head": fed[:SHOWN_CHARS],
        "tail": fed[-SHOWN_CHARS:],
    }


def _note(row: Row) -> str:
    ratio = row["gold_share"] / row["input_share"]
    return f"{row['length']:,} tokens: {'right' if row['success'] else 'wrong'}, gold × {ratio:.1f}"
