"""Short benchmarks as the paper's Table 7 seems to score them: options ranked by mean token log-likelihood.

The score of an option is the mean log-probability of every token of the whole text with the option in it, the first
token (BOS where the tokenizer adds one) excepted: it has nothing before it. Options share their beginning, which is
read once; its scores count in every option, since means over different numbers of tokens are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from e2bench.errors import DataError
from e2bench.hub import OFFLINE, is_online
from e2bench.model import Model, Prompt, common_prefix
from e2bench.processes import Processes
from e2bench.records import RunFolder, json_object
from e2bench.rope import BY_LENGTH, RopeScaling
from e2bench.runner import Item, Row, run
from e2bench.scales import short_number
from e2bench.task import sample_hash
from e2bench.tasks.short import NEW_TOKENS, Choice, Question, ShortTask, answer_of, answered

SHOWN_CHARS = 300


def read_rows_of(folder: Path, task: ShortTask, limit: int | None) -> list[dict[str, Any]]:
    """The first `limit` rows of FOLDER/FILE.jsonl. Raises DataError naming file, line and field."""
    path = folder / f"{task.file}.jsonl"
    rows: list[dict[str, Any]] = []
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
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
            f"{task.name} ({repo}) cannot be fetched: {reason}; give your own copy with --data DIR"
        ) from None
    return [dict(row) for row in (rows if limit is None else rows.select(range(min(limit, len(rows)))))]


@torch.inference_mode()
def log_likelihoods(model: Model, options: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
    """(sum of log-probabilities in nats, how many tokens) of each option's ids but the first.

    The ids that all options begin with go through the model once. The scaling in force is used.
    Raises DataError for an option of fewer than two tokens.
    """
    if any(len(ids) < 2 for ids in options):
        raise DataError("an option has fewer than two tokens: there is nothing to score")
    shared = min(common_prefix(options[0], ids) for ids in options)
    cache = model.new_cache(max(map(len, options)))
    before, last = 0.0, None
    if shared:
        before, last = _read(model, options[0][:shared], cache, 0, None)
    scores = []
    for ids in options:
        if (beyond := cache.get_seq_length() - shared) > 0:
            cache.crop(-beyond)
        total, _ = _read(model, ids[shared:], cache, shared, last)
        scores.append((before + total, len(ids) - 1))
    return scores


def _read(
    model: Model, ids: Sequence[int], cache: Any, start: int, last: torch.Tensor | None
) -> tuple[float, torch.Tensor]:
    """Feed ids at positions `start` …: their summed log-probability, and the last hidden state (1, 1, hidden).

    last: hidden state of the token before, which scores the first id; None: the first id has no score.
    """
    tensor = torch.tensor([list(ids)], device=model.device)
    hidden = model.hidden(tensor, cache, start)
    states = hidden[:, :-1] if last is None else torch.cat([last, hidden[:, :-1]], dim=1)
    targets = tensor[:, 1:] if last is None else tensor
    return -float(model.nll(states, targets).sum(dtype=torch.float64)), hidden[:, -1:]


def measure(
    model: Model,
    work: Sequence[tuple[ShortTask, Sequence[dict[str, Any]]]],
    scaling: RopeScaling,
    folder: RunFolder,
    processes: Processes,
    batch_size: int | None = None,
) -> None:
    """Answer every row of every task; one line each in TASK.jsonl."""
    items = [_item(task, number, row) for task, rows in work for number, row in enumerate(rows)]

    def answer(batch: Sequence[Item]) -> Iterator[tuple[Item, Row]]:
        made = [item.payload[1] for item in batch]
        if isinstance(made[0], Question):
            prompts = [Prompt(model.encode(q.prompt), NEW_TOKENS, settled=_line_complete) for q in made]
            for index, generation in model.generate(prompts, scaling):
                yield batch[index], _generated(batch[index], generation.text, scaling)
            return
        for item in batch:
            ids = [model.encode(text) for text in item.payload[1].texts]
            with model.under(scaling, max(map(len, ids))):
                scores = [total / count for total, count in log_likelihoods(model, ids)]
            yield item, _ranked(item, scores, scaling)

    def rows(item: Item) -> int:
        if isinstance(item.payload[1], Question):
            return 1 if scaling.method in BY_LENGTH else batch_size or model.decode_rows(item.cost + NEW_TOKENS)
        return batch_size or 16

    run(items, answer, folder, batch_size=rows, processes=processes, title="short")


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
