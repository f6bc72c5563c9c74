"""Generated retrieval tasks as plain text: pass keys hidden in filler, key-value pairs in JSON, lines to repeat.

A sample asks for several of the things it hides: each question is one more place where the loss rewards looking
back, and a small model learns to copy many times sooner than from one question a sample.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from e2bench.train.corpus import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASK_LINES = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.",
    "Somewhere in the text below a pass key is hidden. Read everything and remember the key.",
    "Remember each pass key in this text; the rest does not matter.",
)
LANDMARK_FILLER = (  # of Landmark attention's passkey task (arXiv 2305.16300), which every later one repeats
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
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
ADDED = "Remember it."
Sample = Callable[[random.Random, int], str]


def passkey(rng: random.Random, chars: int) -> str:
    """One key stated twice in its line, whole filler sentences around it, a question that ends as an open sentence."""
    key = _digits(rng, 5)
    task = rng.choice(TASK_LINES)
    line = f"The pass key is {key}. {ADDED} {key} is the pass key."
    question = "What is the pass key? The pass key is"
    before, after = _split(rng, _filler(rng, chars - len(task) - len(line) - len(question)))
    separator = rng.choice(("\n", "\n", " "))
    return separator.join(part for part in (task, before, line, after, f"{question} {key}.") if part)


def passkeys(rng: random.Random, chars: int) -> str:
    """Keys of several people, all asked for in another order; half the samples state them before all filler.

    That is as far back as a sample can ask: among shuffled sentences most keys are near their questions, and a model
    that reads no others learns to look near alone.
    """
    names = rng.sample(NAMES, rng.randint(2, max(2, min(8, chars // 150))))
    keys = {name: _digits(rng, rng.randint(3, 6)) for name in names}
    again = rng.random() < 0.5
    lines = [
        f"The pass key of {n} is {k}." + (f" {ADDED} {k} is the pass key of {n}." if again else "")
        for n, k in keys.items()
    ]
    asked = rng.sample(names, len(names))
    opening = rng.choice(("What is the pass key of {0}? ", ""))
    questions = [f"{opening.format(n)}The pass key of {n} is {keys[n]}." for n in asked]
    filler = _filler(rng, chars - sum(map(len, lines)) - sum(map(len, questions)) - len(TASK_LINES[2]))
    sentences = [*lines, *filler]
    if rng.random() < 0.5:
        rng.shuffle(sentences)
    return "\n".join([TASK_LINES[2], " ".join(sentences), *questions])


def key_values(rng: random.Random, chars: int) -> str:
    """A JSON object of random pairs and questions for some of its values, worded as in the paper's appendix A.2."""
    length = rng.choice((3, 4, 4, 6, 8))
    pairs = {_hex(rng, length): _hex(rng, length) for _ in range(max(2, chars // (2 * length + 25)))}
    asked = rng.sample(list(pairs), min(len(pairs), 8))
    questions = [f'Question: What is the value of key "{key}"? Answer: "{pairs[key]}"' for key in asked]
    task = "Key-value pairs: Extract the value corresponding to the specified key in the JSON object below."
    return "\n".join([f"{task} {json.dumps(pairs)}", *questions])


def repetition(rng: random.Random, chars: int) -> str:
    """A line of random words again and again: every word after the first line can be copied."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(5, max(5, min(60, chars // 14))))]
    line = " ".join(words)
    return "Repeat:\n" + "\n".join([line] * max(2, chars // (len(line) + 1)))


TASKS: tuple[tuple[Sample, float, float], ...] = (  # task, share of samples, characters a token takes
    (passkey, 0.35, 3.6),
    (passkeys, 0.4, 2.9),
    (key_values, 0.15, 1.35),
    (repetition, 0.1, 3.4),
)


def retrieval_document(seed: int, index: int, max_tokens: int) -> Document:
    """Sample `index`: half of them as long as the window, half of log-uniform length; about `max_tokens` at most."""
    rng = random.Random(f"{seed}:{index}")
    task, _, chars_per_token = rng.choices(TASKS, [share for _, share, _ in TASKS])[0]
    tokens = max_tokens * (rng.uniform(0.6, 0.97) if rng.random() < 0.5 else 10 ** rng.uniform(-0.9, 0))
    return Document(f"retrieval/{seed}/{index}", task.__name__, task(rng, int(tokens * chars_per_token)))


def write_retrieval(path: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int, tokens: int, max_tokens: int) -> None:
    """Write samples of at most `max_tokens` tokens each, BOS and EOS included, until they hold `tokens` together."""
    with path.open("w", encoding="utf-8") as file:
        for document, length in _fitting(tokenizer, seed, max_tokens):
            file.write(document.line())
            tokens -= length
            if tokens <= 0:
                return


def _fitting(tokenizer: PreTrainedTokenizerBase, seed: int, max_tokens: int) -> Iterator[tuple[Document, int]]:
    index = 0
    while True:
        documents = [retrieval_document(seed, index + i, max_tokens) for i in range(1000)]
        index += len(documents)
        for document, ids in zip(documents, tokenizer([d.text for d in documents])["input_ids"], strict=True):
            if len(ids) + 1 <= max_tokens:  # EOS
                yield document, len(ids) + 1


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
        )
    )


def _filler(rng: random.Random, chars: int) -> list[str]:
    """Whole sentences of at most `chars` characters together: a block again and again, or always new ones."""
    kind = rng.random()
    block = LANDMARK_FILLER if kind < 0.3 else tuple(_sentence(rng) for _ in range(rng.randint(3, 7)))
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
