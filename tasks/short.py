"""The short benchmarks of the paper's Table 7: where their rows are, how a row becomes texts to rank or a question.

The paper names no harness. Its numbers fit zero-shot ranking by the mean token log-likelihood of the whole text, option
put in, and letters for RACE and SIQA. The templates are our own: the sets' public fields, in the plainest words.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2bench.errors import E2BenchError, UnknownName

Example = Mapping[str, Any]
LETTERS = "ABCD"
WHOLE_TEXT = "mean token log-likelihood of the whole text"
BY_LETTER = "mean token log-likelihood of the whole text, options listed, ranked by letter"
EXACT = "exact match after normalising"
NEW_TOKENS = 32


@dataclass(frozen=True)
class Choice:
    """texts: one whole text an option.    labels: what is shown as the prediction.    gold: index of the right one."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Question:
    """A prompt whose first generated line is the answer."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class ShortTask:
    """One benchmark. column: in Table 7, or beside its columns.    file: NAME.jsonl of local data.    hub: (repository, config, split).

    fields: of a row, all needed.    make: a row as texts to rank or a question.    lm_eval: the harness's task name.
    samples: rows of the published split; lm-eval's RACE has 1,045, one an article.    row_id: how every published row's
        `example_id` begins; None where published rows have none.
    """

    name: str
    column: str
    file: str
    hub: tuple[str, str | None, str] | None
    fields: tuple[str, ...]
    make: Callable[[Example], Choice | Question]
    scoring: str
    lm_eval: str | None
    samples: int
    row_id: str | None = None
    version: str = "1"

    def has_own_rows(self, rows: Sequence[Example]) -> bool:
        """Whether some row is not of the published set, as far as rows tell."""
        return self.row_id is not None and not all(str(row.get("example_id")).startswith(self.row_id) for row in rows)


def piqa(row: Example) -> Choice:
    """Goal and solution, one after the other."""
    solutions = (row["sol1"], row["sol2"])
    return Choice(tuple(f"{row['goal'].strip()} {s.strip()}" for s in solutions), solutions, int(row["label"]))


def hellaswag(row: Example) -> Choice:
    """Context and ending."""
    texts = tuple(f"{row['ctx'].strip()} {ending.strip()}" for ending in row["endings"])
    return Choice(texts, tuple(row["endings"]), int(row["label"]))


def winogrande(row: Example) -> Choice:
    """The sentence with each option in the gap."""
    options = (row["option1"], row["option2"])
    return Choice(tuple(row["sentence"].replace("_", o) for o in options), options, int(row["answer"]) - 1)


def _listed(question: str, options: tuple[str, ...], gold: int) -> Choice:
    letters = tuple(LETTERS[: len(options)])
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    return Choice(tuple(f"{question}\n{listed}\nAnswer: {letter}" for letter in letters), letters, gold)


def siqa(row: Example) -> Choice:
    """The three answers listed, then one letter."""
    options = (row["answerA"], row["answerB"], row["answerC"])
    return _listed(f"{row['context']}\nQuestion: {row['question']}", options, int(row["label"]) - 1)


def race(row: Example) -> Choice:
    """Article, question, the four options listed, then one letter."""
    text = f"Read the article and answer the question.\n\n{row['article']}\n\nQuestion: {row['question']}"
    return _listed(text, tuple(row["options"]), LETTERS.index(row["answer"]))


def wsc(row: Example) -> Choice:
    """SuperGLUE's set: the sentence as it is (label 0) against the candidate put in for the pronoun (label 1)."""
    words = row["text"].split(" ")
    at = int(row["span2_index"])
    spoken = row["span2_text"]
    width = len(spoken.split(" "))
    tail = " ".join(words[at : at + width])[len(spoken) :]  # a comma or full stop at the pronoun
    replaced = " ".join([*words[:at], row["span1_text"] + tail, *words[at + width :]])
    return Choice((row["text"], replaced), ("other", row["span1_text"]), int(row["label"]))


POSSESSIVE = ("my", "his", "her", "its", "our", "their")


def wsc273(row: Example) -> Choice:
    """The Winograd schemas: both candidates put in for the pronoun."""
    start, pronoun = int(row["pronoun_loc"]), row["pronoun"]
    before, after = row["text"][:start], row["text"][start + len(pronoun) :]
    owns = pronoun.lower() in POSSESSIVE and after[:1] == " "
    candidates = (_fitting(option.removesuffix("'s"), before) + ("'s" if owns else "") for option in row["options"])
    texts = tuple(f"{before}{candidate}{after}" for candidate in candidates)
    return Choice(texts, tuple(row["options"]), int(row["label"]))


def _fitting(option: str, before: str) -> str:
    """The candidate in the case of its new place: articles and pronouns are small inside a sentence."""
    starts = not before.strip() or before.rstrip()[-1] in ".!?\"'"
    first, _, rest = option.partition(" ")
    if first.lower() in ("the", "a", "an", *POSSESSIVE):
        first = first.capitalize() if starts else first.lower()
    return f"{first} {rest}" if rest else first


def natural_questions(row: Example) -> Question:
    """The question, answered in one line."""
    asked = row["question"].strip().rstrip("?")
    return Question(f"Question: {asked}?\nAnswer:", tuple(row["answer"]))


def normalised(text: str) -> str:
    """SQuAD's form: lower case, no punctuation, no articles, single spaces."""
    plain = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))


def answer_of(text: str) -> str:
    """What counts of a generation: the first line that is not empty, behind the words `answer is` if they occur."""
    line = text.lstrip("\n ").split("\n")[0]
    return re.split(r"answer is:?", line, flags=re.IGNORECASE)[-1].strip()


def answered(text: str, answers: tuple[str, ...]) -> tuple[bool, bool]:
    """(exact match, a reference is contained): both readings of the published evaluators."""
    found = normalised(answer_of(text))
    wanted = [normalised(answer) for answer in answers]
    return found in wanted, any(answer and answer in found for answer in wanted)


# fmt: off
SHORT: tuple[ShortTask, ...] = (
    ShortTask("piqa", "PIQA", "piqa", ("baber/piqa", None, "validation"), ("goal", "sol1", "sol2", "label"), piqa, WHOLE_TEXT, "piqa", 1838),
    ShortTask("wsc", "WSC", "wsc", ("aps/super_glue", "wsc", "validation"), ("text", "span1_text", "span2_text", "span2_index", "label"), wsc, WHOLE_TEXT, "wsc", 104),
    ShortTask("wsc273", "WSC273", "wsc273", None, ("text", "pronoun", "pronoun_loc", "options", "label"), wsc273, WHOLE_TEXT, "wsc273", 273),
    ShortTask("hellaswag", "HellaSwag", "hellaswag", ("Rowan/hellaswag", None, "validation"), ("ctx", "endings", "label"), hellaswag, WHOLE_TEXT, "hellaswag", 10042),
    ShortTask("siqa", "SIQA", "social_iqa", ("lighteval/siqa", None, "validation"), ("context", "question", "answerA", "answerB", "answerC", "label"), siqa, BY_LETTER, "social_iqa", 1954),
    ShortTask("winogrande", "WinoGrande", "winogrande", ("allenai/winogrande", "winogrande_xl", "validation"), ("sentence", "option1", "option2", "answer"), winogrande, WHOLE_TEXT, "winogrande", 1267),
    ShortTask("race_high", "Race-H", "race_high", ("ehovy/race", "high", "test"), ("article", "question", "options", "answer"), race, BY_LETTER, "race", 3498, "high"),
    ShortTask("race_middle", "Race-M", "race_middle", ("ehovy/race", "middle", "test"), ("article", "question", "options", "answer"), race, BY_LETTER, None, 1436, "middle"),
    ShortTask("naturalquestions", "NaturalQuestions", "nq_open", ("google-research-datasets/nq_open", None, "validation"), ("question", "answer"), natural_questions, EXACT, "nq_open", 3610),
)
# fmt: on
TABLE_7 = tuple(
    task for task in SHORT if task.name != "wsc273"
)  # the paper's eight; WSC273 is another set than its WSC


def select(names: str | None) -> list[ShortTask]:
    """Tasks of a comma-separated list of our, the files' or lm-eval's names, in table order; None: all of them."""
    if names is None:
        return list(SHORT)
    known = {alias.lower(): task for task in SHORT for alias in (task.lm_eval, task.file, task.name) if alias}
    wanted = [part.strip().lower() for part in names.split(",") if part.strip()]
    for name in wanted:
        if name not in known:
            raise UnknownName("task", name, [task.name for task in SHORT])
    if not wanted:
        raise E2BenchError("--tasks names no task; give names separated by commas, or leave it out for all")
    return [task for task in SHORT if task in {known[name] for name in wanted}]
