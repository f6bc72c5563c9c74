"""Lines of LongBench v2, ours or its own script's, to accuracies. No model, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2bench.errors import DataError
from e2bench.experiments.answers import check_counts, was_truncated
from e2bench.experiments.base import Line
from e2bench.experiments.questions import check_value
from e2bench.scoring.statistics import mean, wilson
from e2bench.tasks.longbench2 import (
    DIFFICULTIES,
    GROUPS,
    LENGTHS,
    LETTERS,
    LETTERS_NAME,
    NAME,
    QUESTIONS,
    VERSION,
    letter_of,
)
from e2bench.terminal import say

NEEDED = ("_id", *GROUPS, "answer")
CHANCE = 1 / len(LETTERS)  # what no answer counts in the compensated accuracy (LongBench's result.py)
COLUMNS = ("easy", "hard", "short", "medium", "long")  # of LongBench's result table, behind Overall


@dataclass(frozen=True)
class Grade:
    """letter: None where the response names none.    right: whether it is the answer."""

    letter: str | None
    right: bool

    @property
    def plain(self) -> float:
        """1 or 0: no answer is a wrong one."""
        return float(self.right)

    @property
    def compensated(self) -> float:
        """The same, but no answer counts what guessing would give."""
        return CHANCE if self.letter is None else self.plain


def grade(line: Line, where: str) -> Grade:
    """The grade of one line: its response read again, or the letter that it ranked first.

    Raises DataError naming the line for a field that is missing or no such value.
    """
    for name in NEEDED:
        if name not in line:
            raise DataError(f"{where} has no {name!r}; expected {', '.join(NEEDED)}")
        check_value(name, line[name], where)
    if "response" not in line:
        check_value("answer", line.get("pred"), f"{where}: pred")
        return Grade(line["pred"], line["pred"] == line["answer"])
    if not isinstance(line["response"], str):
        raise DataError(f"{where}: response is {line['response']!r:.40}; needed is a text")
    letter = letter_of(line["response"])
    return Grade(letter, letter == line["answer"])


def name_of(line: Line) -> str:
    """The name of the score that a line belongs to: letters ranked by likelihood are another one."""
    return NAME if "response" in line else LETTERS_NAME


def scores_of(lines: Sequence[Line], where: str, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """scores.json: `tasks`, `averages` by LongBench's columns, `details` with every group.

    resolved: of run.json; {} of a file of LongBench's own script.
    Raises DataError for a damaged line, for an `_id` that repeats, and for lines of two scores.
    """
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.get("finish") != "error"]
    answered = [line for _, line in numbered]
    grades = [grade(line, f"{where}:{number}") for number, line in numbered]
    names = {name_of(line) for line in lines}
    if len(names) > 1:
        raise DataError(f"{where} holds lines with a response and lines without: these are two scores")
    check_counts(lines, where, QUESTIONS)
    _say_differences(answered, grades, where)
    name = names.pop() if names else NAME
    groups = {group: _by(group, answered, grades) for group in GROUPS}
    whole = accuracy(grades)
    details = {
        **{key: value for key, value in whole.items() if key != "score"},
        "expected": QUESTIONS,
        "truncated": sum(map(was_truncated, lines)),
        "failed": len(lines) - len(answered),
        "left_out": max(0, QUESTIONS - len(lines)),
        "protocol": protocol(name, lines, resolved),
        "version": VERSION,
        "groups": groups,
    }
    flat = {"Overall": whole, **groups["difficulty"], **groups["length"]}
    averages = {
        scheme: {column.capitalize(): flat[column][key] for column in ("Overall", *COLUMNS) if column in flat}
        for scheme, key in (("plain", "score"), ("compensated", "compensated"))
    }
    tasks = {} if whole["score"] is None else {name: whole["score"]}
    return {"tasks": tasks, "averages": averages if tasks else {}, "details": {name: details}}


def accuracy(grades: Sequence[Grade]) -> dict[str, Any]:
    """Accuracies of some grades in percent, unrounded, with Wilson's 95 % interval of the plain one."""
    plain, compensated = mean([g.plain for g in grades]), mean([g.compensated for g in grades])
    ends = wilson(sum(g.right for g in grades), len(grades)) if grades else None
    return {
        "score": None if plain is None else 100 * plain,
        "interval": ends and [100 * end for end in ends],
        "compensated": None if compensated is None else 100 * compensated,
        "unanswered": sum(g.letter is None for g in grades),
        "scored": len(grades),
    }


def _by(group: str, lines: Sequence[Line], grades: Sequence[Grade]) -> dict[str, dict[str, Any]]:
    """Accuracies by the values of one field: in LongBench's order, others by name."""
    found: dict[str, list[Grade]] = {}
    for line, one in zip(lines, grades, strict=True):
        found.setdefault(line[group], []).append(one)
    order: Iterable[str] = {"difficulty": DIFFICULTIES, "length": LENGTHS}.get(group, sorted(found))
    return {value: accuracy(found[value]) for value in order if value in found}


def protocol(name: str, lines: Sequence[Line], resolved: Mapping[str, Any]) -> str:
    """How the answers were asked for, in words; a file of LongBench's own script says no more than its lines do."""
    if name == LETTERS_NAME:
        return "letters by log-likelihood (lm-eval)"
    if any("response_cot" in line for line in lines):
        return "chain of thought"
    return "without context" if resolved.get("context") is False else "zero-shot" if resolved else "not recorded"


def _say_differences(lines: Sequence[Line], grades: Sequence[Grade], where: str) -> None:
    """Say aloud where a stored letter is not what the response says: it was read by another rule, or edited."""
    others = sum("pred" in line and line["pred"] != one.letter for line, one in zip(lines, grades, strict=True))
    if others:
        say(f"{where}: {others} lines have another `pred` than their response gives; scored by the response")


def rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """The terminal's table: the whole, then by difficulty, length and domain."""
    found = []
    for name, details in scores["details"].items():
        found.append(_row(details["protocol"], {**details, "score": scores["tasks"].get(name)}))
        for group in GROUPS[:3]:
            found += [_row(value, entry) for value, entry in details["groups"][group].items()]
    return found


def _row(label: str, entry: Mapping[str, Any]) -> list[str]:
    low, high = entry["interval"] or (None, None)
    return [
        label,
        "-" if entry["score"] is None else f"{entry['score']:.1f}",
        "" if low is None else f"{low:.1f} – {high:.1f}",
        "-" if entry["compensated"] is None else f"{entry['compensated']:.1f}",
        str(entry["unanswered"]),
        f"{entry['scored']} of {entry['expected']}" if "expected" in entry else str(entry["scored"]),
    ]
