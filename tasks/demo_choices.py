"""Small data for a machine without any: questions in LongBench v2's layout with prompts for them, and short benchmarks.

Made up here. Scores on them show that the bench works, not how good a model is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from e2bench.files import write_atomic
from e2bench.tasks.demo import NAMES, PLACES, THINGS
from e2bench.tasks.longbench2 import ANSWER, COT, COT_ANSWER, DIFFICULTIES, LENGTHS, LETTERS, NO_CONTEXT
from e2bench.tasks.short import SHORT

Row = dict[str, Any]
DOMAINS = ("Single-Document QA", "Multi-Document QA")
SENTENCES = {"short": 60, "medium": 240, "long": 720}  # some 700, 2,800 and 8,400 tokens
TELLINGS = ("{0} keeps the {1} in {2}.", "The {1} of {0} is in {2}.", "If you want the {1} of {0}, go to {2}.")

ASKED = "$Q$\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n\n"
LETTER = 'Answer like this: "The correct answer is (letter)".'
PROMPTS = {
    ANSWER: f"Read the text and answer the question.\n\n$DOC$\n\n{ASKED}{LETTER}",
    COT: f"Read the text and think about the question.\n\n$DOC$\n\n{ASKED}Think step by step:",
    COT_ANSWER: f"Read the thoughts and answer the question.\n\n{ASKED}Thoughts: $COT$\n\n{LETTER}",
    NO_CONTEXT: f"Answer the question.\n\n{ASKED}{LETTER}",
}


def write_longbench2(folder: Path, *, examples: int = 2, seed: int = 0) -> Path:
    """Write data.json, `examples` questions of each length and difficulty, and the prompts' files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [(length, difficulty) for length in LENGTHS for difficulty in DIFFICULTIES]
    rows = [_question(number, *kinds[number % len(kinds)], seed) for number in range(examples * len(kinds))]
    write_atomic(folder / "data.json", json.dumps(rows, indent=1))
    for name, text in PROMPTS.items():
        write_atomic(folder / name, text)
    return folder


def _question(number: int, length: str, difficulty: str, seed: int) -> Row:
    """Who keeps what where, each thing of each person in one place: where one of them is, or how many are in one."""
    rng = random.Random(f"demo/{seed}/longbench2/{number}")
    kept = {(person, thing): rng.choice(PLACES) for person in NAMES for thing in THINGS}
    told = [pair for telling in range(-(-SENTENCES[length] // len(kept))) for pair in rng.sample(list(kept), len(kept))]
    told = told[: SENTENCES[length]]
    person, thing = rng.choice(told)
    if difficulty == "easy":
        question, right = f"Where does {person} keep the {thing}?", kept[person, thing]
        wrong = rng.sample([place for place in PLACES if place != right], 3)
    else:
        place = kept[person, thing]
        several = len({pair for pair in told if pair[0] == person and kept[pair] == place})
        question, right = f"How many different things does {person} keep in {place}?", str(several)
        wrong = rng.sample([str(other) for other in range(1, 8) if other != several], 3)
    answer = LETTERS[number % len(LETTERS)]
    options = dict(zip([letter for letter in LETTERS if letter != answer], wrong, strict=True)) | {answer: right}
    sentences = [rng.choice(TELLINGS).format(*pair, kept[pair]) for pair in told]
    return {
        "_id": f"demo-{number}",
        "domain": DOMAINS[number % len(DOMAINS)],
        "sub_domain": "demo",
        "difficulty": difficulty,
        "length": length,
        "question": question,
        **{f"choice_{letter}": options[letter] for letter in LETTERS},
        "answer": answer,
        "context": " ".join(sentences),
    }


# fmt: off
GOALS = (  # what to do, how, how not
    ("To keep soup warm on a walk,", "pour it into a closed flask.", "pour it onto a flat plate."),
    ("To write in the dark,", "light a lamp first.", "close the curtains first."),
    ("To dry a wet coat,", "hang it near the stove.", "hang it in the rain."),
    ("To carry twelve eggs,", "put them into a basket.", "put them into a letter."),
)
ENDINGS = (  # how it begins, goes on, does not
    ("Anna fills the kettle with water and puts it on the stove. She", "waits until the water boils.", ("reads the water a letter.", "puts the stove into her coat.", "hangs the kettle on a cloud.")),
    ("Ben takes the violin out of its case and tunes it. He", "begins to play.", ("begins to eat it.", "sells the strings to a bird.", "pours it into a cup.")),
    ("Clara has missed the last train home. She", "looks for a room at the station's hotel.", ("thanks the train for waiting.", "gets off at the next station.", "closes the window of the train.")),
    ("David wants to take a picture of the harbour. He", "lifts his camera and looks through it.", ("lifts the harbour into his bag.", "writes the camera a letter.", "waits until the ships are books.")),
)
FEELINGS = (  # what happened, what is asked, the answer, others
    ("Emma forgot her coat, and it rained all the way home.", "How does Emma feel when she arrives?", "cold and wet", ("dry and warm", "hungry for news")),
    ("Felix found the diary that Grace had lost and brought it to her.", "What will Grace do?", "thank Felix", ("lose Felix", "write to the coat")),
    ("Henry practised the song every evening for a month.", "What does Henry want?", "to play it well", ("to forget it", "to sell the month")),
    ("Ida lent Jack her key, and Jack lost it.", "What will Jack do?", "say that he is sorry", ("ask for a prize", "lend Ida the key")),
)
FACTS = (
    ("how many days are in a week", ("seven", "7")),
    ("what is the capital of france", ("Paris",)),
    ("which planet do people live on", ("Earth", "the Earth")),
    ("what does a clock show", ("the time", "time")),
)
# fmt: on
SIZES = (("lamp", "basket"), ("violin", "coat"), ("clock", "camera"), ("map", "diary"))


def write_short(folder: Path) -> Path:
    """Write NAME.jsonl for every short benchmark into `folder`: four rows each, with all that lm-eval reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in SHORT:
        rows = ROWS[task.file]()
        write_atomic(folder / f"{task.file}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _in_turn(number: int, right: str, wrong: Sequence[str]) -> tuple[list[str], int]:
    """The options with the right one at another place for each number, and its index."""
    at = number % (len(wrong) + 1)
    return [*wrong[:at], right, *wrong[at:]], at


def _piqa() -> Iterator[Row]:
    for number, (goal, right, wrong) in enumerate(GOALS):
        (first, second), label = _in_turn(number, right, [wrong])
        yield {"goal": goal, "sol1": first, "sol2": second, "label": label}


def _sizes() -> Iterator[tuple[str, str, str, bool]]:
    """(sentence up to `it`, thing, container, whether `it` is the thing)."""
    for number, (thing, box) in enumerate(SIZES):
        yield f"The {thing} did not fit into the {box} because it", thing, box, number % 2 == 0


def _wsc() -> Iterator[Row]:
    for number, (begun, thing, box, is_thing) in enumerate(_sizes()):
        spoken_of, label = (thing, is_thing) if number < 2 else (box, not is_thing)
        yield {
            "text": f"{begun} was too {'large' if is_thing else 'small'}.",
            "span1_text": f"the {spoken_of}",
            "span1_index": begun.split(" ").index(spoken_of) - 1,
            "span2_text": "it",
            "span2_index": len(begun.split(" ")) - 1,
            "label": int(label),
        }


def _wsc273() -> Iterator[Row]:
    for begun, thing, box, is_thing in _sizes():
        yield {
            "text": f"{begun} was too {'large' if is_thing else 'small'}.",
            "pronoun": "it",
            "pronoun_loc": len(begun) - len("it"),
            "options": [f"The {thing}", f"The {box}"],
            "label": 0 if is_thing else 1,
        }


def _winogrande() -> Iterator[Row]:
    for begun, thing, box, is_thing in _sizes():
        yield {
            "sentence": f"{begun.removesuffix('it')}the _ was too {'large' if is_thing else 'small'}.",
            "option1": thing,
            "option2": box,
            "answer": "1" if is_thing else "2",
        }


def _hellaswag() -> Iterator[Row]:
    for number, (begun, right, wrong) in enumerate(ENDINGS):
        endings, label = _in_turn(number, right, wrong)
        first, _, second = begun.rpartition(" ")
        shared = {"ctx": begun, "ctx_a": first, "ctx_b": second, "activity_label": "Demo"}
        yield {**shared, "endings": endings, "label": str(label)}


def _siqa() -> Iterator[Row]:
    for number, (context, question, right, wrong) in enumerate(FEELINGS):
        (a, b, c), label = _in_turn(number, right, wrong)
        yield {
            "context": context,
            "question": question,
            "answerA": a,
            "answerB": b,
            "answerC": c,
            "label": str(label + 1),
        }


def _race(level: str) -> Iterator[Row]:
    for number in range(4):
        rng = random.Random(f"demo/race/{level}/{number}")
        kept = {person: (rng.choice(THINGS), rng.choice(PLACES)) for person in NAMES[:8]}
        asked = rng.choice(list(kept))
        thing, right = kept[asked]
        options, label = _in_turn(number, right, rng.sample([place for place in PLACES if place != right], 3))
        yield {
            "example_id": f"demo-{level}-{number}",
            "article": " ".join(f"{person} keeps the {what} in {where}." for person, (what, where) in kept.items()),
            "question": f"Where does {asked} keep the {thing}?",
            "options": options,
            "answer": LETTERS[label],
        }


def _natural_questions() -> Iterator[Row]:
    for question, answers in FACTS:
        yield {"question": question, "answer": list(answers)}


ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    "piqa": _piqa,
    "wsc": _wsc,
    "wsc273": _wsc273,
    "hellaswag": _hellaswag,
    "social_iqa": _siqa,
    "winogrande": _winogrande,
    "race_high": lambda: _race("high"),
    "race_middle": lambda: _race("middle"),
    "nq_open": _natural_questions,
}
