"""The questions of LongBench v2: rows and prompts read and checked, filled in, and what becomes of an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2bench.errors import DataError
from e2bench.experiments.answers import Question
from e2bench.files import read_json_list
from e2bench.prompts.task import sample_hash
from e2bench.runs.items import Row
from e2bench.tasks.longbench2 import (
    CONTEXT_CHARS,
    COT,
    COT_ANSWER,
    DIFFICULTIES,
    FIELDS,
    LENGTHS,
    LETTERS,
    NAME,
    NEEDED,
    NEW_TOKENS,
    PLACEHOLDERS,
    PROMPT_SHA256,
    QUESTIONS,
    THOUGHT_TOKENS,
    THOUGHTS,
    Example,
    letter_of,
    settled,
)

POSSIBLE = {"answer": tuple(LETTERS), "difficulty": DIFFICULTIES, "length": LENGTHS}


def read_examples(path: Path, limit: int | None, *, whole: bool) -> list[Example]:
    """The first `limit` questions of data.json. Raises DataError naming file, question and what is wrong.

    whole: the file is the published one, and must have its number of questions.
    """
    rows = read_json_list(path)
    if whole and len(rows) != QUESTIONS:
        raise DataError(f"{path} holds {len(rows)} questions, LongBench v2 has {QUESTIONS}; delete it and fetch again")
    examples: list[Example] = []
    seen: set[str] = set()
    for number, row in enumerate(rows[:limit], 1):
        example = _checked(row, f"{path}: question {number}")
        if example["_id"] in seen:
            raise DataError(f"{path}: question {number}: _id {example['_id']!r} is there twice; ids must be unique")
        seen.add(example["_id"])
        examples.append(example)
    if not examples:
        raise DataError(f"{path} is empty: needed is a list of questions")
    return examples


def _checked(row: Any, where: str) -> Example:
    if not isinstance(row, dict):
        raise DataError(f"{where} is a JSON {type(row).__name__}, needed is an object")
    for name in FIELDS:
        if name not in row:
            raise DataError(f"{where}: field {name!r} is missing; needed are {', '.join(FIELDS)}")
        check_value(name, row[name], where)
    try:
        "".join(row[name] for name in FIELDS).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: half a surrogate pair, which is no character; mend the text") from None
    return {name: row[name] for name in FIELDS}


def check_value(name: str, value: Any, where: str) -> None:
    """Raise DataError for a field of a question that is no text, or none of the possible ones."""
    possible = POSSIBLE.get(name)
    if possible and value not in possible:
        raise DataError(f"{where}: {name} is {value!r:.40}; needed is one of {', '.join(possible)}")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is {value!r:.40}; needed is a text")


def read_prompts(paths: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, str]]:
    """(prompts by file, SHA-256 of those that are not LongBench's own). Raises DataError for what is no such prompt."""
    texts, own = {}, {}
    for name, path in paths.items():
        try:
            raw = path.read_bytes()
            texts[name] = raw.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise DataError(f"prompt {path} cannot be read: {reason}; --prompts takes a folder with it") from None
        missing = [placeholder for placeholder in NEEDED[name] if placeholder not in texts[name]]
        if missing:
            raise DataError(f"prompt {path} has no {missing[0]}; it needs {' '.join(NEEDED[name])}")
        digest = hashlib.sha256(raw).hexdigest()
        if digest != PROMPT_SHA256[name]:
            own[name] = digest
    return texts, own


def filled(template: str, example: Example, thoughts: str | None = None) -> str:
    """A prompt as LongBench's pred.py fills it in: one placeholder after the other, also inside texts put in before."""
    for placeholder, field in PLACEHOLDERS.items():
        template = template.replace(placeholder, example[field].strip())
    return template if thoughts is None else template.replace(THOUGHTS, thoughts)


def questions_of(examples: Sequence[Example], texts: Mapping[str, str]) -> list[Question]:
    """One question an example; with a chain of thought two, one after the other. texts: the protocol's prompts."""
    return [_with_thoughts(e, texts) if COT in texts else _answer(e, *texts.values()) for e in examples]


def _answer(example: Example, template: str, thoughts: str | None = None) -> Question:
    line = fields_of(example) if thoughts is None else {**fields_of(example), "response_cot": thoughts}

    def answered(text: str) -> Row:
        response = text.strip()
        return {**line, "response": response, **judged(letter_of(response), example)}

    prompt = filled(template, example, thoughts)
    return _question(example, prompt, NEW_TOKENS, answered, settled=settled)


def _with_thoughts(example: Example, texts: Mapping[str, str]) -> Question:
    def answered(text: str) -> Question:
        return _answer(example, texts[COT_ANSWER], text.strip())

    return _question(example, filled(texts[COT], example), THOUGHT_TOKENS, answered)


def _question(example: Example, prompt: str, budget: int, answered: Any, **rest: Any) -> Question:
    return Question(NAME, example["_id"], sample_hash(example), prompt, budget, answered, **rest)


def fields_of(example: Example) -> dict[str, str]:
    """The fields of an example as a line of LongBench's own holds them: the context's beginning only."""
    return {**example, "context": example["context"][:CONTEXT_CHARS]}


def judged(letter: str | None, example: Example) -> dict[str, Any]:
    """The fields `pred` and `judge` of a line."""
    return {"pred": letter, "judge": letter == example["answer"]}
