"""The wordings of the passkey task: what a prompt says besides its key, and the filler around it."""

from __future__ import annotations

from dataclasses import dataclass

from e2bench.prompts.wording import Wording


@dataclass(frozen=True)
class PassKeyTemplate:
    """One wording.

    task: the first line.    key_line: says `{key}` twice.    question: the last line, an open sentence.
    filler: sentences that are repeated in this order.    spare: sentences of other lengths, put at the very end of the
        filler to reach an exact number of tokens; those of `filler` serve too.
    """

    name: str
    task: str
    key_line: str
    question: str
    filler: tuple[str, ...]
    spare: tuple[str, ...] = ()

    @property
    def wording(self) -> Wording:
        """How a text is known to be written for it."""
        sentences = [f"{sentence}." for sentence in self.task.rstrip(".").split(". ")]
        told = [self.key_line.rpartition("{key}")[2].strip(), self.question.partition("?")[0] + "?"]
        return Wording(f"passkey {self.name}", (*sentences, *told), self.filler)


LANDMARK = PassKeyTemplate(  # epfml/landmark-attention, llama/run_test.py; the same in LongLoRA, YaRN and PoSE
    "landmark",
    task="There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.",
    key_line="The pass key is {key}. Remember it. {key} is the pass key.",
    question="What is the pass key? The pass key is",
    filler=(
        "The grass is green.",
        "The sky is blue.",
        "The sun is yellow.",
        "Here we go.",
        "There and back again.",
    ),
)
E2BENCH = PassKeyTemplate(  # the words in which the embedded tiny model was trained
    "e2bench",
    task="Somewhere in the text below a pass key is hidden. Read everything and remember the key.",
    key_line=LANDMARK.key_line,
    question=LANDMARK.question,
    filler=(
        "The river is quiet.",
        "The old house keeps the letter.",
        "Anna opens the wooden window.",
        "There is a small garden near the village.",
        "The winter is cold.",
    ),
    spare=(
        "Yes.",
        "It is late.",
        "The road is open.",
        "The simple story follows the ship.",
        "Otto helps the famous teacher.",
    ),
)
TEMPLATES = {template.name: template for template in (LANDMARK, E2BENCH)}
