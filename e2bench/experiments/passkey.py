"""Passkey retrieval on a fixed grid of lengths × depths × trials.

A prompt has five parts, joined by newlines: a task line, filler, the key's line, filler, and a question that ends as an
open sentence. Their words are a template's (tasks/passkey.py): by default those of Landmark attention (Mohtashami &
Jaggi, arXiv 2305.16300), which the field repeats. Where it differs from Landmark's own code: filler is whole sentences
(there cut inside words), every prompt has exactly its target of tokens (there of characters), keys have five digits
(there 1 to 50,000), places are a fixed grid (there random), and a cell's key depends on the seed, the length, the depth
and the trial alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.data.source import GENERATED, DataSource
from e2bench.errors import E2BenchError
from e2bench.experiments.base import Experiment, Line, Plan, Sample
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
from e2bench.files import read_json
from e2bench.models.protocols import Generator, Prompt
from e2bench.prompts.truncation import Codec
from e2bench.prompts.wording import Wording
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import ScaleRule, parse_lengths, short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.runs.lines import RUN, row_id
from e2bench.runs.processes import Processes
from e2bench.settings import setting
from e2bench.tasks.passkey import TEMPLATES, PassKeyTemplate

if TYPE_CHECKING:
    from e2bench.experiments.options import Common
    from e2bench.runs.folder import RunFolder

KEY_DIGITS = 5
NEW_TOKENS = 16
SETTLED = re.compile(r"\d\D")
INTEGER = re.compile(r"\d+")


@dataclass(frozen=True)
class PassKey(Experiment):
    """Passkey retrieval: a grid of lengths, depths and trials."""

    name: ClassVar[str] = "passkey"
    about: ClassVar[str] = "Passkey retrieval: a grid of lengths, depths and trials."
    agree: ClassVar[Mapping[str, bool]] = {"grid": True}
    implied: ClassVar[Mapping[str, Any]] = {"template": "e2bench"}
    asks: ClassVar[tuple[str, ...]] = ("template",)
    wordings: ClassVar[tuple[Wording, ...]] = tuple(template.wording for template in TEMPLATES.values())
    advice: ClassVar[Mapping[str, str]] = {"template": "give the --template of that run"}
    amount: ClassVar[str] = "trials"
    cells: ClassVar[str] = "lengths"
    cell_needs: ClassVar[tuple[str, ...]] = ("length", "accuracy")
    columns: ClassVar[Mapping[str, str]] = {
        "length": "length",
        "scale": "g",
        "template": "template",
        "accuracy": "found",
        "interval": "95 % interval",
        "strict": "strict",
        "trials": "trials",
    }
    fractions: ClassVar[Sequence[str]] = ("accuracy", "interval", "strict")

    lengths: tuple[int, ...] = setting(
        "4k..32k", "Prompt and answer in tokens: 4k..32k doubles, commas list.", parse=parse_lengths, lines="grid"
    )
    depths: int = setting(11, "Evenly spaced places of the key, 0 to 1.", minimum=1, lines="depths")
    trials: int = setting(5, "Keys a cell.", minimum=1, lines="trials")
    template: str = setting(
        "landmark", "Words of the prompt: landmark (the field's) or e2bench (ours).", choices=tuple(TEMPLATES)
    )
    early_stop: bool = setting(True, "Stop once the number is complete.")

    def plan(self, model: Generator, rule: ScaleRule, common: Common, inputs: None) -> Plan:
        """Every key at every depth of every length."""
        from e2bench.models.memory import require_memory

        require_memory(model, self.lengths[-1])
        grid = grid_of(self.lengths, rule)
        places = depths_of(self.depths)
        template = TEMPLATES[self.template]
        cells = list(make_cells(model, grid, template, depths=places, trials=self.trials, seed=common.seed))
        return Plan(
            items=items_of(cells),
            measure=asking(model, early_stop=self.early_stop),
            batch_size=together(cells),
            note=_note,
            part=lambda item: cell_part(item.payload.length, item.payload.scaling),
            resolved={
                "grid": named(grid),
                "depths": places,
                "trials": self.trials,
                "seed": common.seed,
                "template": self.template,
                "early_stop": self.early_stop,
                "chat_template": "none",
            },
            source=DataSource(GENERATED),
            **grid_facts(grid, rule, common, self.name),
        )

    # stored lines

    @classmethod
    def worded(cls, resolved: Mapping[str, Any]) -> Sequence[Wording]:
        """The template's."""
        return [wording for wording in cls.wordings if wording.name == f"passkey {resolved.get('template')}"]

    @classmethod
    def summarise(cls, folder: Path, **options: Any) -> dict[str, Any]:
        """Accuracy of each (length, scale) with Wilson's 95 % interval."""
        from e2bench.scoring.statistics import wilson

        manifest = read_json(folder / RUN) if (folder / RUN).exists() else {}
        template = cls.resolved_of(manifest)["template"]
        lengths = []
        for (length, scale), rows in grouped(finished_lines(folder, cls.name), "length", "scale"):
            hits = sum(bool(row["success"]) for row in rows)
            lengths.append(
                {
                    "length": length,
                    "scale": scale,
                    "template": template,
                    "accuracy": hits / len(rows),
                    "interval": wilson(hits, len(rows)),
                    "strict": sum(bool(row["strict"]) for row in rows) / len(rows),
                    "trials": len(rows),
                }
            )
        return {"lengths": lengths}

    @classmethod
    def samples(cls, folder: Path, name: str, lines: Sequence[Line], *, strict: bool) -> Iterator[tuple[Line, Sample]]:
        """A key and what was answered."""

        def made(line: Line) -> dict[str, Any]:
            found = bool(line["success"])
            texts = {"reference": line["key"], "prediction": str(line["pred"]), "label": cell_label(line)}
            return {"score": float(found), "grade": 100 * found, **texts}

        return cell_samples(lines, ("depth", "trial"), "length", made, strict=strict)


@dataclass(frozen=True)
class Cell:
    """One trial: where the key stands in the filler (0 first, 1 last); prompt and answer have `length` tokens."""

    length: int
    depth: float
    trial: int
    key: str
    scaling: RopeScaling
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    @property
    def id(self) -> str:
        """Names the line of this cell."""
        return row_id(self.coordinates)

    @property
    def coordinates(self) -> dict[str, Any]:
        """Length, depth, trial and scale, as they stand in the line."""
        scale = short_number(self.scaling.factor)
        return {"length": self.length, "depth": self.depth, "trial": self.trial, "scale": scale}


def depths_of(count: int) -> list[float]:
    """`count` evenly spaced depths from 0 (the filler's start) to 1 (its end)."""
    return [round(index / max(1, count - 1), 4) for index in range(count)]


def key_of(seed: int, length: int, depth: float, trial: int) -> str:
    """The cell's key: five digits, the first not 0."""
    return str(
        random.Random(f"passkey/{seed}/{length}/{depth}/{trial}").randrange(10 ** (KEY_DIGITS - 1), 10**KEY_DIGITS)
    )


def build_prompt(codec: Codec, template: PassKeyTemplate, tokens: int, depth: float, key: str) -> list[int]:
    """Ids of a prompt of exactly `tokens` tokens (special tokens included), the key at `depth` of its filler.

    Raises E2BenchError when the parts alone are longer, or no mix of filler sentences meets the number.
    """

    def ids_of(sentences: Sequence[str], spare: Sequence[str] = ()) -> list[int]:
        cut = round(depth * len(sentences))
        before, after = list(sentences[:cut]), list(sentences[cut:])
        (after or before).extend(spare)  # behind other sentences, so that each adds the same tokens anywhere
        key_line = template.key_line.format(key=key)
        parts = (template.task, " ".join(before), key_line, " ".join(after), template.question)
        return codec.encode("\n".join(part for part in parts if part))

    bare = len(ids_of([]))
    if bare > tokens:
        raise E2BenchError(
            f"a passkey prompt has at least {bare} tokens, and {max(tokens, 0)} fit beside its answer; "
            "give longer --lengths"
        )
    filler = template.filler
    block = len(ids_of(filler * 3)) - len(ids_of(filler * 2))
    sentences = list(filler) * ((tokens - bare) // block)
    while sentences and len(ids_of(sentences)) > tokens:
        sentences.pop()
    before_it = len(ids_of(filler))
    costs = {one: len(ids_of(filler, [one])) - before_it for one in (*template.spare, *filler)}
    for dropped in range(min(len(sentences), 2 * len(filler)) + 1):
        kept = sentences[: len(sentences) - dropped]
        need = tokens - len(ids_of(kept))
        for slack in (0, -1, 1, -2, 2):  # tokens that merge across a border make a sum off by one or two
            ids = ids_of(kept, _mix(need + slack, costs))
            if len(ids) == tokens:
                return ids
    raise E2BenchError(
        f"no mix of the filler sentences of template {template.name} gives a prompt of exactly {tokens} tokens with "
        "this tokenizer; give another --template, or other --lengths"
    )


def _mix(need: int, costs: dict[str, int]) -> list[str]:
    """The fewest sentences whose tokens add up to `need`; none when no mix does."""
    best: list[list[str] | None] = [[]] + [None] * max(need, 0)
    for total in range(1, need + 1):
        ways = [(best[total - cost], sentence) for sentence, cost in costs.items() if 0 < cost <= total]
        found = [[*way, sentence] for way, sentence in ways if way is not None]
        best[total] = min(found, key=len) if found else None
    return best[need] or [] if need > 0 else []


def make_cells(
    codec: Codec,
    grid: Sequence[tuple[int, RopeScaling]],
    template: PassKeyTemplate,
    *,
    depths: Sequence[float],
    trials: int,
    seed: int,
) -> Iterator[Cell]:
    """Every cell of the grid, the deepest first: neighbours share the longest beginnings."""
    for length, scaling in grid:
        for depth in sorted(depths, reverse=True):
            for trial in range(trials):
                key = key_of(seed, length, depth, trial)
                ids = build_prompt(codec, template, length - NEW_TOKENS, depth, key)
                answer = codec.encode(codec.decode(ids) + f" {key}")
                shared = next(
                    (i for i, pair in enumerate(zip(answer, ids, strict=False)) if pair[0] != pair[1]), len(ids)
                )
                yield Cell(length, depth, trial, key, scaling, tuple(ids), tuple(answer[shared:]))


def first_integer(text: str) -> str | None:
    """The first run of digits, which counts as the answer; None without any."""
    found = INTEGER.search(text)
    return found.group() if found else None


def settled(text: str) -> bool:
    """The first run of digits is complete."""
    return SETTLED.search(text) is not None


def items_of(cells: Sequence[Cell]) -> list[Item]:
    """One item a cell; those of one length and scale share a batch, since their prompts begin alike."""
    return [Item("passkey", cell.id, cell.length, (cell.length, cell.scaling), cell) for cell in cells]


def together(cells: Sequence[Cell]) -> Callable[[Item], int]:
    """A process's share of the cells of a length."""
    share = -(-len(cells) // max(1, len({cell.length for cell in cells}) * Processes.from_environment().world))
    return lambda item: share


def asking(model: Generator, *, early_stop: bool = True) -> Measure:
    """What asks for the key of each cell in a batch and makes the lines of `passkey.jsonl` (docs/files.md)."""

    def measure(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        stop = settled if early_stop else None
        prompts = [Prompt(item.payload.ids, NEW_TOKENS, settled=stop) for item in batch]
        for index, generation in model.generate_sharing(prompts, batch[0].payload.scaling):
            yield batch[index], _line(batch[index].payload, generation.text, generation.ids)

    return measure


def _line(cell: Cell, text: str, ids: Sequence[int]) -> Row:
    return {
        **cell.coordinates,
        "tokens": len(cell.ids),
        "key": cell.key,
        "pred": text,
        "success": first_integer(text) == cell.key,
        "strict": tuple(ids[: len(cell.answer_ids)]) == cell.answer_ids,  # LongLoRA passkey_retrivial.py, d4eb344
        "new_tokens": len(ids),
    }


def _note(row: Row) -> str:
    return f"{row['length']:,} tokens, depth {row['depth']:.1f}: {'found' if row['success'] else 'missed'}"
