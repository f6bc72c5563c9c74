"""Something hidden in a long text, on a grid of lengths × depths × trials: what passkey and needle share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.experiments.base import Experiment, Line, Plan, Sample
from e2bench.experiments.grid import (
    Grid,
    cell_label,
    cell_part,
    cell_samples,
    finished_lines,
    grid_facts,
    grid_of,
    grouped,
    named,
)
from e2bench.files import read_json
from e2bench.models.protocols import Generator, Prompt
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.windows import ScaleRule, parse_lengths, short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.runs.lines import RUN, row_id
from e2bench.runs.processes import Processes
from e2bench.settings import setting

if TYPE_CHECKING:
    from e2bench.data.source import DataSource
    from e2bench.experiments.options import Common
    from e2bench.runs.folder import RunFolder


@dataclass(frozen=True)
class Cell:
    """One trial: where the key stands in the hay (0 first, 1 last); prompt and answer fit `length` tokens.

    answer_ids: the key as it continues the prompt; empty where nobody asks.    sample: hash of what is not in the id.
    """

    length: int
    depth: float
    trial: int
    key: str
    scaling: RopeScaling
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    sample: str | None = None

    @property
    def id(self) -> str:
        """Names the line of this cell."""
        return row_id(self.coordinates)

    @property
    def coordinates(self) -> dict[str, Any]:
        """Length, depth, trial and scale, as they stand in the line."""
        scale = short_number(self.scaling.factor)
        return {"length": self.length, "depth": self.depth, "trial": self.trial, "scale": scale}


@dataclass(frozen=True)
class Hidden:
    """What a run hides, and in what.

    cells: every cell of the grid, the deepest first: neighbours share the longest beginnings.
    resolved: further entries of run.json's `resolved`.    source, data: of the hay, as in `Plan`.
    """

    cells: Sequence[Cell]
    resolved: Mapping[str, Any]
    source: DataSource
    data: Mapping[str, str]


@dataclass(frozen=True)
class DepthGrid(Experiment):
    """Base of experiments that hide a key at every depth of every length.

    new_tokens: most of an answer.    words: the entry of `resolved` that says in which words or text; in every cell of
        scores.json and in legends.
    """

    new_tokens: ClassVar[int]
    words: ClassVar[str]
    agree: ClassVar[Mapping[str, bool]] = {"grid": True}
    amount: ClassVar[str] = "trials"
    cells: ClassVar[str] = "lengths"
    cell_needs: ClassVar[tuple[str, ...]] = ("length", "accuracy")
    fractions: ClassVar[Sequence[str]] = ("accuracy", "interval", "strict")

    lengths: tuple[int, ...] = setting(
        "4k..32k", "Prompt and answer in tokens: 4k..32k doubles, commas list.", parse=parse_lengths, lines="grid"
    )
    depths: int = setting(11, "Evenly spaced places of the key, 0 to 1.", minimum=1, lines="depths")
    trials: int = setting(5, "Keys a cell.", minimum=1, lines="trials")
    early_stop: bool = setting(True, "Stop once the answer is complete.")

    def hide(self, model: Generator, grid: Grid, places: Sequence[float], common: Common, inputs: Any) -> Hidden:
        """The cells of a grid at `places`."""
        raise NotImplementedError

    def settled(self, cell: Cell) -> Callable[[str], bool]:
        """Whether an answer's text so far is complete."""
        raise NotImplementedError

    def graded(self, cell: Cell, text: str, ids: Sequence[int]) -> Row:
        """The fields of a line that say whether an answer holds the key: `success`, and others."""
        raise NotImplementedError

    def plan(self, model: Generator, rule: ScaleRule, common: Common, inputs: Any) -> Plan:
        """Every key at every depth of every length."""
        from e2bench.models.memory import require_memory

        require_memory(model, self.lengths[-1])
        grid = grid_of(self.lengths, rule)
        places = depths_of(self.depths)
        hidden = self.hide(model, grid, places, common, inputs)
        return Plan(
            items=items_of(self.name, hidden.cells),
            measure=asking(model, self),
            batch_size=together(hidden.cells),
            note=_note,
            part=lambda item: cell_part(item.payload.length, item.payload.scaling),
            resolved={
                "grid": named(grid),
                "depths": places,
                "trials": self.trials,
                "seed": common.seed,
                "early_stop": self.early_stop,
                **hidden.resolved,
            },
            source=hidden.source,
            data=hidden.data,
            **grid_facts(grid, rule, common, self.name),
        )

    # stored lines

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Accuracy of each (length, scale) with Wilson's 95 % interval."""
        from e2bench.scoring.statistics import wilson

        manifest = read_json(folder / RUN) if (folder / RUN).exists() else {}
        words = cls.resolved_of(manifest).get(cls.words)
        lengths = []
        for (length, scale), rows in grouped(finished_lines(folder, cls.name), "length", "scale"):
            hits = sum(bool(row["success"]) for row in rows)
            cell = {"length": length, "scale": scale, cls.words: words, "accuracy": hits / len(rows)}
            cell["interval"] = wilson(hits, len(rows))
            if "strict" in cls.columns:
                cell["strict"] = sum(bool(row["strict"]) for row in rows) / len(rows)
            lengths.append({**cell, "trials": len(rows)})
        return {"lengths": lengths}

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """A key and what was answered."""

        def made(line: Line) -> dict[str, Any]:
            found = bool(line["success"])
            texts = {"reference": line["key"], "prediction": str(line["pred"]), "label": cell_label(line)}
            return {"score": float(found), "grade": 100 * found, **texts}

        return cell_samples(lines, ("depth", "trial"), "length", made, strict=strict)


def depths_of(count: int) -> list[float]:
    """`count` evenly spaced depths from 0 (the hay's start) to 1 (its end)."""
    return [round(index / max(1, count - 1), 4) for index in range(count)]


def coordinates(grid: Grid, depths: Sequence[float], trials: int) -> Iterator[tuple[int, RopeScaling, float, int]]:
    """(length, scaling, depth, trial) of every cell, the deepest first."""
    for length, scaling in grid:
        for depth in sorted(depths, reverse=True):
            for trial in range(trials):
                yield length, scaling, depth, trial


def items_of(name: str, cells: Sequence[Cell]) -> list[Item]:
    """One item a cell; those of one length and scale share a batch, since their prompts begin alike.

    Where the frequencies follow a prompt's own length, only prompts of one length share it.
    """

    def group(cell: Cell) -> tuple[Any, ...]:
        return cell.length, cell.scaling, len(cell.ids) if cell.scaling.method in BY_LENGTH else None

    return [Item(name, cell.id, cell.length, group(cell), cell, cell.sample) for cell in cells]


def together(cells: Sequence[Cell]) -> Callable[[Item], int]:
    """A process's share of the cells of a length."""
    share = -(-len(cells) // max(1, len({cell.length for cell in cells}) * Processes.from_environment().world))
    return lambda item: share


def asking(model: Generator, experiment: DepthGrid) -> Measure:
    """What asks for the key of each cell in a batch and makes its line (docs/files.md)."""

    def measure(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        def stop(cell: Cell) -> Callable[[str], bool] | None:
            return experiment.settled(cell) if experiment.early_stop else None

        prompts = [Prompt(one.payload.ids, experiment.new_tokens, settled=stop(one.payload)) for one in batch]
        for index, generation in model.generate_sharing(prompts, batch[0].payload.scaling):
            cell = batch[index].payload
            yield batch[index], line_of(experiment, cell, generation.text, generation.ids)

    return measure


def line_of(experiment: DepthGrid, cell: Cell, text: str, ids: Sequence[int]) -> Row:
    """The line of a cell's answer."""
    line = {**cell.coordinates, "tokens": len(cell.ids), "key": cell.key, "pred": text}
    return {**line, **experiment.graded(cell, text, ids), "new_tokens": len(ids)}


def _note(row: Row) -> str:
    return f"{row['length']:,} tokens, depth {row['depth']:.1f}: {'found' if row['success'] else 'missed'}"
