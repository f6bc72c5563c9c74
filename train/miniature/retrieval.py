"""Generated retrieval tasks as plain text: pass keys hidden in filler, key-value pairs in JSON, lines to repeat.

A sample asks for several of the things it hides: each question is one more place where the loss rewards looking
back, and a small model learns to copy many times sooner than from one question a sample.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Many words, and none of an evaluation's: a model that finds what it is asked for in others has learned to look.
THINGS = ("secret code", "door code", "magic number", "password", "ticket number", "room number", "call sign")
TASK_LINES = (
    "A {thing} stands somewhere in the following text. Look for it and keep it in mind.",
    "Read the text to its end; you will be asked for the {thing} that it holds.",
    "One line of this text matters, the one with the {thing}; leave the rest aside.",
    "The text below is long and mostly idle. What counts in it is the {thing}.",
    "Learn the {thing} from this text.",
)
KEY_LINES = (
    "The {thing} is {key}. Keep it in mind: {key}.",
    "Note that {key} is the {thing}. Again, the {thing} is {key}.",
    "Today the {thing} is {key}, and it stays {key}.",
    "Whoever asks for the {thing} shall hear {key}, and only {key}.",
)
QUESTIONS = (
    "Which {thing} did the text give? The {thing} is",
    "Please repeat the {thing}. It is",
    "Now say the {thing}:",
    "Question: what was the {thing}? Answer:",
)
SEVERAL = "Keep every {thing} in this text in mind; the rest does not matter."
NOUNS = (
    "river",
    "house",
    "letter",
    "window",
    "garden",
    "teacher",
    "engine",
    "winter",
    "table",
    "village",
    "story",
    "number",
    "ship",
    "road",
    "forest",
    "market",
)
ADJECTIVES = (
    "old",
    "quiet",
    "small",
    "warm",
    "heavy",
    "bright",
    "empty",
    "famous",
    "green",
    "narrow",
    "simple",
    "late",
    "cold",
    "open",
    "gentle",
    "wooden",
)
VERBS = (
    "follows",
    "watches",
    "finds",
    "leaves",
    "remembers",
    "passes",
    "opens",
    "helps",
    "keeps",
    "crosses",
)
NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Ida",
    "Jack",
    "Karl",
    "Lena",
    "Max",
    "Nora",
    "Otto",
    "Paula",
)
WORDS = (*NOUNS, *ADJECTIVES, *VERBS, *NAMES)
ADDED = "Write it down."


class Sample(NamedTuple):
    """What is told, and what is asked and answered; the text is one behind the other."""

    prompt: str
    completion: str

    @property
    def text(self) -> str:
        return self.prompt + self.completion


def passkey(rng: random.Random, chars: int) -> Sample:
    """One key stated twice in its line, whole filler sentences around it, a question that ends as an open sentence."""
    thing, key = rng.choice(THINGS), _digits(rng, rng.randint(4, 6))
    task, line, question = (
        rng.choice(wordings).format(thing=thing, key=key) for wordings in (TASK_LINES, KEY_LINES, QUESTIONS)
    )
    before, after = _split(rng, _filler(rng, chars - len(task) - len(line) - len(question)))
    separator = rng.choice(("\n", "\n", " "))
    return Sample(separator.join(part for part in (task, before, line, after, question) if part), f" {key}.")


def passkeys(rng: random.Random, chars: int) -> Sample:
    """Keys of several people, all asked for in another order; half the samples state them before all filler.

    That is as far back as a sample can ask: among shuffled sentences most keys are near their questions, and a model
    that reads no others learns to look near alone.
    """
    thing = rng.choice(THINGS)
    names = rng.sample(NAMES, rng.randint(2, max(2, min(8, chars // 150))))
    keys = {name: _digits(rng, rng.randint(3, 5)) for name in names}
    again = rng.random() < 0.5
    lines = [
        f"The {thing} of {n} is {k}." + (f" {ADDED} {k} is the {thing} of {n}." if again else "")
        for n, k in keys.items()
    ]
    asked = rng.sample(names, len(names))
    opening = rng.choice((f"What is the {thing} of {{0}}? ", ""))
    questions = [f"{opening.format(n)}The {thing} of {n} is {keys[n]}." for n in asked]
    task = SEVERAL.format(thing=thing)
    filler = _filler(rng, chars - sum(map(len, lines)) - sum(map(len, questions)) - len(task))
    sentences = [*lines, *filler]
    if rng.random() < 0.5:
        rng.shuffle(sentences)
    return Sample(f"{task}\n{' '.join(sentences)}\n", "\n".join(questions))


def key_values(rng: random.Random, chars: int) -> Sample:
    """A JSON object of random pairs and questions for some of its values, worded as in the paper's appendix A.2."""
    length = rng.choice((3, 4, 4, 6, 8))
    pairs = {_hex(rng, length): _hex(rng, length) for _ in range(max(2, chars // (2 * length + 25)))}
    asked = rng.sample(list(pairs), min(len(pairs), 8))
    questions = [f'Question: What is the value of key "{key}"? Answer: "{pairs[key]}"' for key in asked]
    task = "Key-value pairs: Extract the value corresponding to the specified key in the JSON object below."
    return Sample(f"{task} {json.dumps(pairs)}\n", "\n".join(questions))


def repetition(rng: random.Random, chars: int) -> Sample:
    """A line of random words again and again: every word after the first line can be copied."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(5, max(5, min(60, chars // 14))))]
    line = " ".join(words)
    return Sample(f"Repeat:\n{line}\n", "\n".join([line] * max(1, chars // (len(line) + 1) - 1)))


TASKS: tuple[tuple[Callable[[random.Random, int], Sample], float, float], ...] = (
    (passkey, 0.35, 3.6),  # task, share of samples, characters a token takes
    (passkeys, 0.4, 2.9),
    (key_values, 0.15, 1.35),
    (repetition, 0.1, 3.4),
)


def retrieval_sample(seed: int, index: int, max_tokens: int) -> tuple[str, Sample]:
    """Task and sample `index`: half as long as the window, half of log-uniform length; about `max_tokens` at most."""
    rng = random.Random(f"{seed}:{index}")
    task, _, chars_per_token = rng.choices(TASKS, [share for _, share, _ in TASKS])[0]
    tokens = max_tokens * (rng.uniform(0.6, 0.97) if rng.random() < 0.5 else 10 ** rng.uniform(-0.9, 0))
    return task.__name__, task(rng, int(tokens * chars_per_token))


def write_retrieval(path: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int, tokens: int, max_tokens: int) -> None:
    """Write samples of at most `max_tokens` tokens each, BOS and EOS included, until they hold `tokens` together.

    In the prompt-completion layout, so that the loss can be on the answers alone.
    """
    with path.open("w", encoding="utf-8") as file:
        for index, task, sample, length in _fitting(tokenizer, seed, max_tokens):
            meta = {"pile_set_name": task, "source": f"retrieval/{seed}/{index}"}
            file.write(json.dumps({**sample._asdict(), "meta": meta}) + "\n")
            tokens -= length
            if tokens <= 0:
                return


def _fitting(tokenizer: PreTrainedTokenizerBase, seed: int, max_tokens: int) -> Iterator[tuple[int, str, Sample, int]]:
    """(index, task, sample, tokens) of those that are not too long."""
    for first in itertools.count(step=1000):
        samples = [retrieval_sample(seed, first + i, max_tokens) for i in range(1000)]
        encoded = tokenizer([sample.text for _, sample in samples])["input_ids"]
        for number, ((task, sample), ids) in enumerate(zip(samples, encoded, strict=True)):
            if len(ids) + 1 <= max_tokens:  # EOS
                yield first + number, task, sample, len(ids) + 1


def _digits(rng: random.Random, count: int) -> str:
    return str(rng.randrange(10 ** (count - 1), 10**count))


def _hex(rng: random.Random, count: int) -> str:
    return f"{rng.randrange(16**count):0{count}x}"


def _sentence(rng: random.Random) -> str:
    noun, other = rng.sample(NOUNS, 2)
    adjective = rng.choice(ADJECTIVES)
    return rng.choice(
        (
            f"The {noun} is {adjective}.",
            f"The {adjective} {noun} {rng.choice(VERBS)} the {other}.",
            f"{rng.choice(NAMES)} {rng.choice(VERBS)} the {adjective} {noun}.",
            f"There is a {adjective} {noun} near the {other}.",
            f"Behind the {noun} {rng.choice(NAMES)} {rng.choice(VERBS)} the {other}.",
            f"Was the {noun} ever so {adjective}?",
            f"No {noun} {rng.choice(VERBS)} a {adjective} {other}.",
        )
    )


def _filler(rng: random.Random, chars: int) -> list[str]:
    """Whole sentences of at most `chars` characters together: a block again and again, or always new ones."""
    kind = rng.random()
    block = tuple(_sentence(rng) for _ in range(rng.randint(3, 7)))
    sentences: list[str] = []
    while True:
        sentence = _sentence(rng) if kind > 0.6 else block[len(sentences) % len(block)]
        chars -= len(sentence) + 1
        if chars < 0:
            return sentences
        sentences.append(sentence)


def _split(rng: random.Random, sentences: list[str]) -> tuple[str, str]:
    cut = rng.randint(0, len(sentences))
    return " ".join(sentences[:cut]), " ".join(sentences[cut:])
