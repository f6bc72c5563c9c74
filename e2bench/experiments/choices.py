"""Short benchmarks as the paper's Table 7 seems to score them: options ranked by mean token log-likelihood.

The score of an option is the mean log-probability of every token of the whole text with the option in it, the first
token (BOS where the tokenizer adds one) excepted: it has nothing before it. Options share their beginning, which is
read once; its scores count in every option, since means over different numbers of tokens are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.errors import DataError
from e2bench.files import json_object, read_lines
from e2bench.hub import OFFLINE, is_online
from e2bench.models.protocols import Prompt, Scorer
from e2bench.prompts.task import sample_hash
from e2bench.rope.methods import BY_LENGTH, RopeScaling
from e2bench.rope.windows import short_number
from e2bench.runs.items import Item, Measure, Row
from e2bench.tasks.short import NEW_TOKENS, Choice, Question, ShortTask, answer_of, answered

if TYPE_CHECKING:
    from e2bench.runs.folder import RunFolder

SHOWN_CHARS = 300


def read_rows_of(folder: Path, task: ShortTask, limit: int | None) -> list[dict[str, Any]]:
    """The first `limit` rows of FOLDER/FILE.jsonl. Raises DataError naming file, line and field."""
    path = folder / f"{task.file}.jsonl"
    rows: list[dict[str, Any]] = []
    with path.open("rb") as lines:
        for number, raw in read_lines(lines, path):
            if limit is not None and len(rows) >= limit:
                break
            if raw.strip():
                rows.append(_checked(raw, task, f"{path}:{number}"))
    if not rows:
        raise DataError(f"{path} is empty: needed is one JSON object a line")
    return rows


def _checked(raw: bytes, task: ShortTask, where: str) -> dict[str, Any]:
    row = json_object(raw, where)
    if missing := [f for f in task.fields if f not in row]:
        raise DataError(f"{where}: field {missing[0]!r} is missing; {task.name} needs {', '.join(task.fields)}")
    try:
        made = task.make(row)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{where}: not a row of {task.name}: {error}") from None
    if isinstance(made, Choice) and not 0 <= made.gold < len(made.texts):
        raise DataError(f"{where}: the label names none of the {len(made.texts)} options")
    return row


def hub_rows(task: ShortTask, limit: int | None) -> list[dict[str, Any]]:
    """Rows of the public data set. Raises DataError where there is none, or it cannot be fetched."""
    if task.hub is None:
        raise DataError(f"{task.name} is read from local data alone: give --data DIR with {task.file}.jsonl")
    online = is_online()
    from datasets import load_dataset

    repo, config, split = task.hub
    try:
        rows = load_dataset(repo, config, split=split)
    except Exception as error:  # the hub client and datasets raise many kinds, offline ones among them
        reason = " ".join(str(error).split())[:160] if online else OFFLINE
        raise DataError(
            f"{task.name} ({repo}) cannot be fetched: {reason}; give your own copy with --data DIR, or --data demo"
        ) from None
    return [dict(row) for row in (rows if limit is None else rows.select(range(min(limit, len(rows)))))]


def items_of(work: Sequence[tuple[ShortTask, Sequence[dict[str, Any]]]]) -> list[Item]:
    """One item a row of every task."""
    return [_item(task, number, row) for task, rows in work for number, row in enumerate(rows)]


def answering(model: Scorer, scaling: RopeScaling) -> Measure:
    """What ranks options or answers questions: one line each in TASK.jsonl."""

    def measure(batch: Sequence[Item], folder: RunFolder) -> Iterator[tuple[Item, Row]]:
        made = [item.payload[1] for item in batch]
        if isinstance(made[0], Question):
            prompts = [Prompt(model.encode(q.prompt), NEW_TOKENS, settled=_line_complete) for q in made]
            for index, generation in model.generate(prompts, scaling):
                yield batch[index], _generated(batch[index], generation.text, scaling)
            return
        for item in batch:
            ids = [model.encode(text) for text in item.payload[1].texts]
            with model.under(scaling, max(map(len, ids))):
                scores = [total / count for total, count in model.option_scores(ids)]
            yield item, _ranked(item, scores, scaling)

    return measure


def rows_together(model: Scorer, scaling: RopeScaling, batch_size: int | None) -> Callable[[Item], int]:
    """How many rows of an item's kind to work on together."""

    def rows(item: Item) -> int:
        if isinstance(item.payload[1], Question):
            return 1 if scaling.method in BY_LENGTH else batch_size or model.decode_rows(item.cost + NEW_TOKENS)
        return batch_size or 16

    return rows


def tokens_of(model: Scorer) -> Callable[[Item], int]:
    """Tokens read for an item (what its options share once), and a question's budget of new ones."""
    from e2bench.models.decoding import common_prefix

    def tokens(item: Item) -> int:
        made = item.payload[1]
        if isinstance(made, Question):
            return len(model.encode(made.prompt)) + NEW_TOKENS
        ids = [model.encode(text) for text in made.texts]
        shared = min(common_prefix(ids[0], one) for one in ids)
        return shared + sum(len(one) - shared for one in ids)

    return tokens


def _item(task: ShortTask, number: int, row: Mapping[str, Any]) -> Item:
    made = task.make(row)
    texts = made.texts if isinstance(made, Choice) else (made.prompt,)
    cost = sum(len(text) // 4 + 1 for text in texts)
    return Item(task.name, f"{task.name}-{number}", cost, (task.name,), (task, made), sample_hash(row))


def _ranked(item: Item, scores: list[float], scaling: RopeScaling) -> Row:
    task, made = item.payload
    best = max(range(len(scores)), key=scores.__getitem__)
    return {
        "_id": item.id,
        "dataset": task.name,
        "suite": "paper",
        "prediction": made.labels[best],
        "gold": made.labels[made.gold],
        "choices": scores,
        "correct": int(best == made.gold),
        "scale": short_number(scaling.factor),
        "scoring": task.scoring,
        "tail": made.texts[made.gold][-SHOWN_CHARS:],
    }


def _generated(item: Item, text: str, scaling: RopeScaling) -> Row:
    task, made = item.payload
    exact, contained = answered(text, made.answers)
    return {
        "_id": item.id,
        "dataset": task.name,
        "suite": "paper",
        "prediction": answer_of(text),
        "gold": list(made.answers),
        "choices": None,
        "correct": int(exact),
        "contained": int(contained),
        "scale": short_number(scaling.factor),
        "scoring": task.scoring,
        "tail": made.prompt[-SHOWN_CHARS:],
    }


def _line_complete(text: str) -> bool:
    return "\n" in text.lstrip("\n ")
