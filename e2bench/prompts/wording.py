"""How one tells that a text was written for an evaluation: its task line, its question, its filler."""

from __future__ import annotations

from dataclasses import dataclass

FILLER_SENTENCES = 3  # so many different ones in one text are no chance


@dataclass(frozen=True)
class Wording:
    """What the prompts of one evaluation say.

    name: in e2_config.json and run.json: `passkey landmark`.    lines: one of them in a text gives it away.
    filler: sentences of which a text may hold one or two by chance.
    """

    name: str
    lines: tuple[str, ...]
    filler: tuple[str, ...] = ()

    def is_in(self, text: str) -> bool:
        """Whether a text holds these words, letter by letter."""
        if any(line in text for line in self.lines):
            return True
        return sum(sentence in text for sentence in self.filler) >= min(FILLER_SENTENCES, len(self.filler) or 1)
