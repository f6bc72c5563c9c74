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
from typing import TYPE_CHECKING, Any, ClassVar

from e2bench.data.source import GENERATED, DataSource
from e2bench.errors import E2BenchError
from e2bench.experiments.depths import Cell, DepthGrid, Hidden, coordinates
from e2bench.models.protocols import Generator
from e2bench.prompts.truncation import Codec
from e2bench.prompts.wording import Wording
from e2bench.rope.methods import RopeScaling
from e2bench.runs.items import Row
from e2bench.settings import setting
from e2bench.tasks.passkey import TEMPLATES, PassKeyTemplate

if TYPE_CHECKING:
    from e2bench.experiments.grid import Grid
    from e2bench.experiments.options import Common

KEY_DIGITS = 5
SETTLED = re.compile(r"\d\D")
INTEGER = re.compile(r"\d+")


@dataclass(frozen=True)
class PassKey(DepthGrid):
    """Passkey retrieval: a grid of lengths, depths and trials."""

    name: ClassVar[str] = "passkey"
    about: ClassVar[str] = "Passkey retrieval: a grid of lengths, depths and trials."
    examples: ClassVar[tuple[str, ...]] = ("e2bench passkey --lengths 512..4k --depths 5 --trials 2",)
    new_tokens: ClassVar[int] = 16
    words: ClassVar[str] = "template"
    implied: ClassVar[Mapping[str, Any]] = {"template": "e2bench"}
    asks: ClassVar[tuple[str, ...]] = ("template",)
    wordings: ClassVar[tuple[Wording, ...]] = tuple(template.wording for template in TEMPLATES.values())
    advice: ClassVar[Mapping[str, str]] = {"template": "give the --template of that run"}
    columns: ClassVar[Mapping[str, str]] = {
        "length": "length",
        "scale": "g",
        "template": "template",
        "accuracy": "found",
        "interval": "95 % interval",
        "strict": "strict",
        "trials": "trials",
    }

    template: str = setting(
        "landmark", "Words of the prompt: landmark (the field's) or e2bench (ours).", choices=tuple(TEMPLATES)
    )

    def hide(self, model: Generator, grid: Grid, places: Sequence[float], common: Common, inputs: None) -> Hidden:
        """A key in each cell's filler."""
        template = TEMPLATES[self.template]
        cells = list(make_cells(model, grid, template, depths=places, trials=self.trials, seed=common.seed))
        return Hidden(cells, {"template": self.template, "chat_template": "none"}, DataSource(GENERATED), {})

    def settled(self, cell: Cell) -> Callable[[str], bool]:
        """The first run of digits is complete."""
        return settled

    def graded(self, cell: Cell, text: str, ids: Sequence[int]) -> Row:
        """Whether the first integer is the key; strictly (LongLoRA passkey_retrivial.py, d4eb344), its own ids."""
        strict = tuple(ids[: len(cell.answer_ids)]) == cell.answer_ids
        return {"success": first_integer(text) == cell.key, "strict": strict}

    @classmethod
    def worded(cls, resolved: Mapping[str, Any]) -> Sequence[Wording]:
        """The template's."""
        return [wording for wording in cls.wordings if wording.name == f"passkey {resolved.get('template')}"]


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
    """Every cell of the grid, the deepest first."""
    for length, scaling, depth, trial in coordinates(grid, depths, trials):
        key = key_of(seed, length, depth, trial)
        ids = build_prompt(codec, template, length - PassKey.new_tokens, depth, key)
        answer = codec.encode(codec.decode(ids) + f" {key}")
        shared = next((i for i, pair in enumerate(zip(answer, ids, strict=False)) if pair[0] != pair[1]), len(ids))
        yield Cell(length, depth, trial, key, scaling, tuple(ids), tuple(answer[shared:]))


def first_integer(text: str) -> str | None:
    """The first run of digits, which counts as the answer; None without any."""
    found = INTEGER.search(text)
    return found.group() if found else None


def settled(text: str) -> bool:
    """The first run of digits is complete."""
    return SETTLED.search(text) is not None
