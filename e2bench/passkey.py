"""Passkey retrieval on a fixed grid of lengths × depths × trials.

A prompt has five parts, joined by newlines: a task line, filler, the key's line, filler, and a question that ends as an
open sentence. Filler is whole sentences; every prompt has exactly its target of tokens; keys have five digits; a cell's
key depends on the seed, the length, the depth and the trial alone. After Mohtashami & Jaggi (arXiv 2305.16300), whose
key is random in length and whose filler is cut inside words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.model import Model, Prompt
from e2bench.processes import Processes
from e2bench.records import RunFolder, row_id
from e2bench.rope import RopeScaling
from e2bench.runner import Item, Row, run
from e2bench.scales import short_number
from e2bench.truncation import Codec

TASK = "Somewhere in the text below a pass key is hidden. Read everything and remember the key."
KEY_LINE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
FILLER = (
    "The river is quiet.",
    "The old house keeps the letter.",
    "Anna opens the wooden window.",
    "There is a small garden near the village.",
    "The winter is cold.",
)
# Sentences of other lengths, put at the very end of the filler to reach the exact number of tokens.
SPARE = (
    "Yes.",
    "It is late.",
    "The road is open.",
    "The simple story follows the ship.",
    "Otto helps the famous teacher.",
)
KEY_DIGITS = 5
NEW_TOKENS = 16
SETTLED = re.compile(r"\d\D")
INTEGER = re.compile(r"\d+")


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
    if count < 1:
        raise E2BenchError(f"--depths {count} is not possible; it must be at least 1")
    return [round(index / max(1, count - 1), 4) for index in range(count)]


def key_of(seed: int, length: int, depth: float, trial: int) -> str:
    """The cell's key: five digits, the first not 0."""
    return str(
        random.Random(f"passkey/{seed}/{length}/{depth}/{trial}").randrange(10 ** (KEY_DIGITS - 1), 10**KEY_DIGITS)
    )


def build_prompt(codec: Codec, tokens: int, depth: float, key: str) -> list[int]:
    """Ids of a prompt of exactly `tokens` tokens (special tokens included), the key at `depth` of its filler.

    Raises E2BenchError when the parts alone are longer, or no mix of filler sentences meets the number.
    """

    def ids_of(sentences: Sequence[str], spare: Sequence[str] = ()) -> list[int]:
        cut = round(depth * len(sentences))
        before, after = list(sentences[:cut]), list(sentences[cut:])
        (after or before).extend(spare)  # behind other sentences, so that each adds the same tokens anywhere
        parts = (TASK, " ".join(before), KEY_LINE.format(key=key), " ".join(after), QUESTION)
        return codec.encode("\n".join(part for part in parts if part))

    bare = len(ids_of([]))
    if bare > tokens:
        raise E2BenchError(
            f"a passkey prompt has at least {bare} tokens, and {max(tokens, 0)} fit beside its answer; "
            "give longer --lengths"
        )
    block = len(ids_of(FILLER * 3)) - len(ids_of(FILLER * 2))
    sentences = list(FILLER) * ((tokens - bare) // block)
    while sentences and len(ids_of(sentences)) > tokens:
        sentences.pop()
    costs = {sentence: len(ids_of(FILLER, [sentence])) - len(ids_of(FILLER)) for sentence in (*SPARE, *FILLER)}
    for dropped in range(min(len(sentences), 2 * len(FILLER)) + 1):
        kept = sentences[: len(sentences) - dropped]
        need = tokens - len(ids_of(kept))
        for slack in (0, -1, 1, -2, 2):  # tokens that merge across a border make a sum off by one or two
            ids = ids_of(kept, _mix(need + slack, costs))
            if len(ids) == tokens:
                return ids
    raise E2BenchError(f"no mix of filler sentences gives a prompt of exactly {tokens} tokens with this tokenizer")


def _mix(need: int, costs: dict[str, int]) -> list[str]:
    """The fewest sentences whose tokens add up to `need`; none when no mix does."""
    best: list[list[str] | None] = [[]] + [None] * max(need, 0)
    for total in range(1, need + 1):
        ways = [(best[total - cost], sentence) for sentence, cost in costs.items() if 0 < cost <= total]
        found = [[*way, sentence] for way, sentence in ways if way is not None]
        best[total] = min(found, key=len) if found else None
    return best[need] or [] if need > 0 else []


def make_cells(
    codec: Codec, grid: Sequence[tuple[int, RopeScaling]], *, depths: Sequence[float], trials: int, seed: int
) -> Iterator[Cell]:
    """Every cell of the grid, the deepest first: neighbours share the longest beginnings."""
    for length, scaling in grid:
        for depth in sorted(depths, reverse=True):
            for trial in range(trials):
                key = key_of(seed, length, depth, trial)
                ids = build_prompt(codec, length - NEW_TOKENS, depth, key)
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


def measure(
    model: Model, cells: Sequence[Cell], folder: RunFolder, processes: Processes, *, early_stop: bool = True
) -> None:
    """Ask for the key in every cell; one line each in `passkey.jsonl`, whose fields docs/files.md tells."""

    def work(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        stop = settled if early_stop else None
        prompts = [Prompt(item.payload.ids, NEW_TOKENS, settled=stop) for item in batch]
        for index, generation in model.generate_sharing(prompts, batch[0].payload.scaling):
            cell: Cell = batch[index].payload
            yield batch[index], _line(cell, generation.text, generation.ids)

    items = [Item("passkey", cell.id, cell.length, (cell.length, cell.scaling), cell) for cell in cells]
    share = -(-len(items) // max(1, len({cell.length for cell in cells}) * processes.world))
    run(items, work, folder, batch_size=lambda item: share, processes=processes, title="passkey", note=_note)


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
