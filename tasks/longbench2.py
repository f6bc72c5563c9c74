"""LongBench v2 (arXiv 2412.15204; THUDM/LongBench at 2e00731): what a question holds, its prompts, budgets and limit.

The prompts' texts are fetched at run time (`e2bench data longbench2`) and known here by their SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NAME, LETTERS_NAME = "longbench2", "longbench2-letters"  # of the two scores, and of the files of their lines
VERSION = "1"  # changes with any prompt or with how an answer is read
QUESTIONS = 503
Example = Mapping[str, str]  # a question, by FIELDS
FIELDS = (
    "_id",
    "domain",
    "sub_domain",
    "difficulty",
    "length",
    "question",
    "choice_A",
    "choice_B",
    "choice_C",
    "choice_D",
    "answer",
    "context",
)
LETTERS = "ABCD"
DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")
GROUPS = ("difficulty", "length", "domain", "sub_domain")

INPUT_LIMIT = 120_000  # tokens kept of a prompt (config/model2maxlen.json: all models but one)
NEW_TOKENS, THOUGHT_TOKENS = 128, 1024  # of an answer, of a chain of thought (pred.py)
CONTEXT_CHARS = 1000  # of the context kept in a line (pred.py)

# Prompt: file of the repository's folder `prompts`, and its SHA-256. None of them ends with a newline.
ANSWER, COT, COT_ANSWER, NO_CONTEXT = "0shot.txt", "0shot_cot.txt", "0shot_cot_ans.txt", "0shot_no_context.txt"
REVISION = "2e00731f8d0bff23dc4325161044d0ed8af94c1e"
PROMPT_SHA256 = {
    ANSWER: "68a162252bc9ff71d5d7abca3d69bb31aac3c35f832d657a2866f2018b8a6950",
    COT: "6cc33d92fd8f611662b756c1f10f302c541ca005b58c46d5f3188ac3a939bfe8",
    COT_ANSWER: "85ec59df4ac0e27aabbc619a7ca5cf3ae1787dd5a76cf51a18944eb52c91955f",
    NO_CONTEXT: "125fb44183af01ffc623df19392b80a287db62af3e2a2805e5b2ff9c7b2bee30",
}
# Placeholder: field of a question. In pred.py's order: a later one is also replaced inside what an earlier one put in.
PLACEHOLDERS = {
    "$DOC$": "context",
    "$Q$": "question",
    "$C_A$": "choice_A",
    "$C_B$": "choice_B",
    "$C_C$": "choice_C",
    "$C_D$": "choice_D",
}
THOUGHTS = "$COT$"
NEEDED = {  # placeholders without which a prompt would ask for something else
    ANSWER: tuple(PLACEHOLDERS),
    COT: tuple(PLACEHOLDERS),
    COT_ANSWER: (*tuple(PLACEHOLDERS)[1:], THOUGHTS),
    NO_CONTEXT: tuple(PLACEHOLDERS)[1:],
}

# lm-eval 0.4.13's own version: its prompt's file below lm_eval/tasks, the SHA-256 of `doc_to_text`.
LM_EVAL_FILE = "longbench2/_longbench_common_yaml"
LM_EVAL_SHA256 = "fb68fca418e1a31fc38e19f0fe98a455f3c67f98c22411287467306848b5656f"

_IN_BRACKETS = re.compile(r"The correct answer is \(([A-D])\)")
_PLAIN = re.compile(r"The correct answer is ([A-D])")


def letter_of(response: str) -> str | None:
    """The letter that a response gives, None for none: LongBench's `extract_answer` (pred.py), quirks included.

    Asterisks do not count; a letter in brackets wins over an earlier one without.
    """
    text = response.replace("*", "")
    found = _IN_BRACKETS.search(text) or _PLAIN.search(text)
    return found.group(1) if found else None


def settled(text: str) -> bool:
    """No further token can change the letter: the first one in brackets is there."""
    return _IN_BRACKETS.search(text.replace("*", "")) is not None
