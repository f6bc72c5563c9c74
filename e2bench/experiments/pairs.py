"""Inputs of Figure 6: key-value pairs hidden at a depth of a long text, and a question for one value at the end."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from e2bench.errors import DataError, E2BenchError, ModelError
from e2bench.prompts.wording import Wording
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import short_length, short_number

if TYPE_CHECKING:
    from e2bench.data.corpus import Document
    from e2bench.models.protocols import Generator

PAIRS = 3  # the paper's
TASK = "Key-value pairs: Extract the value corresponding to the specified key in the JSON object below."
QUESTION = '\n\nQuestion: What is the value of key "{key}"? Answer: "'
WORDING = Wording("attention", (TASK, "What is the value of key"))
STYLES = ("uuid", "short")
SPARE_TOKENS = 8  # generated beyond the answer's own number of tokens
SNAP_TOKENS = 64  # how far a pair may move from its depth to stand between two lines


@dataclass(frozen=True)
class Cell:
    """One question. ids: the input; with the answer's budget it has exactly `length` tokens.

    gold: first and last input index of the asked value's tokens.    document: id of the text around it.
    """

    length: int
    depth: float
    trial: int
    scaling: RopeScaling
    ids: tuple[int, ...]
    gold: tuple[int, int]
    answer: str
    question_tokens: int
    budget: int
    document: str

    @property
    def coordinates(self) -> dict[str, Any]:
        """What tells the cell from others."""
        scale = short_number(self.scaling.factor)
        return {"length": self.length, "depth": self.depth, "trial": self.trial, "scale": scale}


def make_cell(
    model: Generator,
    document: str,
    text: Sequence[int],
    *,
    length: int,
    depth: float,
    trial: int,
    scaling: RopeScaling,
    seed: int = 0,
    style: str = "uuid",
    scattered: bool = False,
) -> Cell:
    """Hide three pairs in a text of token ids (special tokens first) and ask for one of them.

    scattered: each pair on its own line, the other two a third of the text before and behind; else one JSON object.
    Raises E2BenchError when `length` cannot hold the parts, DataError when the text is too short for it.
    """
    rng = random.Random(f"attention/{seed}/{length}/{depth}/{trial}")
    pairs = {_word(rng, style): _word(rng, style) for _ in range(PAIRS)}
    key = list(pairs)[rng.randrange(PAIRS)]
    answer = pairs[key]
    budget = len(model.encode(f'"{answer}"', special_tokens=False)) + SPARE_TOKENS
    question = model.encode(QUESTION.format(key=key), special_tokens=False)
    pieces = [(depth, f"\n\n{TASK} {json.dumps(pairs)}\n\n")]
    if scattered:
        places = [depth, (depth + 1 / 3) % 1, (depth + 2 / 3) % 1]
        ordered = [key, *(other for other in pairs if other != key)]
        pieces = [(d, f"\n\n{json.dumps({k: pairs[k]})}\n\n") for d, k in zip(places, ordered, strict=True)]
    encoded = [(d, *_encode_with_span(model, piece, answer)) for d, piece in sorted(pieces)]
    fixed = len(question) + sum(len(ids) for _, ids, _ in encoded)
    room = length - budget - fixed
    if room < PAIRS + 1:
        raise E2BenchError(
            f"pairs, question and answer take {fixed + budget} tokens, which leaves {max(room, 0)} of {length} for the "
            "text; give longer --lengths, or --keys short"
        )
    if len(text) < room:
        raise DataError(f"the text has {len(text):,} tokens, {room:,} are needed; give a longer one with --data")
    ids: list[int] = []
    gold, at = (0, 0), 0
    for place, piece, span in encoded:
        cut = max(at, _line_border(model, text, round(place * room), room))
        ids += text[at:cut]
        if span is not None:
            gold = (len(ids) + span[0], len(ids) + span[1])
        ids += piece
        at = cut
    ids += [*text[at:room], *question]
    return Cell(length, depth, trial, scaling, tuple(ids), gold, answer, len(question), budget, document)


def _word(rng: random.Random, style: str) -> str:
    if style == "uuid":
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))
    return f"{rng.getrandbits(16):04x}"


def _encode_with_span(model: Generator, text: str, value: str) -> tuple[list[int], tuple[int, int] | None]:
    """Ids of a text, and the first and last index of those that hold `value`; None where it does not occur."""
    if not getattr(model.tokenizer, "is_fast", False):
        raise ModelError("finding a value's tokens needs a fast tokenizer (one with tokenizer.json); none is here")
    model.encode(text, special_tokens=False)  # refuses a token that the model has no row for
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    start = text.find(f'"{value}"') + 1
    if start == 0:
        return list(encoded["input_ids"]), None
    end = start + len(value)
    held = [i for i, (begin, stop) in enumerate(encoded["offset_mapping"]) if begin < end and stop > start]
    return list(encoded["input_ids"]), (held[0], held[-1])


def _line_border(model: Generator, text: Sequence[int], at: int, room: int) -> int:
    """The cut nearest to `at` behind a token that ends a line; `at` itself where none is near."""
    for distance in range(SNAP_TOKENS + 1):
        for cut in (at - distance, at + distance):
            if 1 < cut < room and model.decode([text[cut - 1]]).endswith("\n"):
                return cut
    return min(max(at, 1), room)  # never before BOS


def closed(text: str) -> bool:
    """The quoted value is complete."""
    return '"' in text or "\n" in text.lstrip("\n")


def long_texts(
    documents: Iterator[Document], model: Generator, tokens: int, wanted: int
) -> Sequence[tuple[str, list[int]]]:
    """(id, token ids with BOS) of the first `wanted` documents of at least `tokens` tokens.

    Fewer will do, each then serves several trials. Raises DataError where none is long enough.
    """
    found: dict[str, list[int]] = {}
    longest = seen = 0
    for document in documents:
        seen += 1
        # Nothing behind this many characters is used; tokenizing all of a long document would take minutes.
        ids = model.encode(document.text[: tokens * 16])
        longest = max(longest, len(ids))
        if len(ids) >= tokens:
            found[document.id] = ids[:tokens]
        if len(found) >= wanted:
            break
    if not found:
        raise DataError(
            f"the longest of {seen} texts has {longest:,} tokens, {short_length(tokens)} are needed; "
            "give a longer one with --data, or shorter --lengths"
        )
    return list(found.items())
