"""A function of one's own as a model: texts in, answers out. Does what LongBench, RULER and passkey ask of a model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from e2bench.errors import E2BenchError
from e2bench.models.protocols import Generation
from e2bench.models.texts import Remote
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import Scale, ScaleRule

Answer = Callable[[list[str]], Sequence[str]]


class NoRope:
    """Stands where a loaded model has its RopeSwitch, and changes nothing.

    A function's positions are its own matter; those of a server that is started here are its command line's.
    """

    def using(self, scaling: RopeScaling | None, length: int | None = None) -> AbstractContextManager[None]:
        """Nothing can be changed."""
        return nullcontext()

    def in_force(self) -> list[float]:
        """Inverse frequencies: unknown."""
        return []


class CallableModel(Remote):
    """`answer` takes a list of prompts and gives a list of continuations. It decides how much it runs together.

    tokenizer: of transformers; counts and truncates prompts.    window: tokens that prompt and answer may have.
    """

    dtype, attention, device = "callable", "callable", None
    own_scaling = None

    def __init__(self, answer: Answer, tokenizer: Any, *, window: int, name: str = "") -> None:
        super().__init__()
        self.answer, self.tokenizer, self.native_window = answer, tokenizer, window
        self.name = name or getattr(answer, "__name__", type(answer).__name__).strip("<>")
        self.rope = NoRope()

    def describe(self) -> dict[str, Any]:
        """The `model` part of run.json. The fingerprint is of name and tokenizer: nothing more can be seen."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return {
            "name": self.name,
            "path": "",
            "fingerprint": hashlib.sha256(repr((self.name, vocabulary)).encode()).hexdigest(),
            "architecture": "callable",
            "parameters": None,
            "native_window": self.native_window,
            "vocab_size": len(self.tokenizer),
        }

    def rule(self, scale: Scale | None, method: str | None) -> ScaleRule:
        """The scale is the function's own: none can be given."""
        if scale is not None or method is not None:
            raise E2BenchError("scale and method of a function cannot be set from here; leave them out")
        return ScaleRule("own", (1.0,), "none", self.native_window, RopeScaling("none", 1))

    def needed_bytes(self, tokens: int, rows: int = 1) -> int:
        """Unknown, so that nothing is refused."""
        return 0

    def decode_rows(self, tokens: int) -> int:
        """Prompts handed over in one call."""
        return 16

    def generate(self, prompts: Sequence[Any], scaling: RopeScaling | None = None) -> Iterator[tuple[int, Any]]:
        """(index of the prompt, answer) for a list of `Prompt`; an answer longer than its budget is cut.

        Raises E2BenchError where the function does not give one text a prompt.
        """
        texts = [prompt.text or self.decode(prompt.ids) for prompt in prompts]
        began = time.perf_counter()
        answers = list(self.answer(texts))
        if len(answers) != len(texts) or not all(isinstance(answer, str) for answer in answers):
            kinds = ", ".join(sorted({type(answer).__name__ for answer in answers})) or "nothing"
            raise E2BenchError(
                f"{self.name} must give one str for each of {len(texts)} prompts; it gave {len(answers)} of {kinds}: "
                f"{answers!r:.80}"
            )
        seconds = (time.perf_counter() - began) / len(texts)
        for index, (prompt, text) in enumerate(zip(prompts, answers, strict=True)):
            ids = self.encode(text, special_tokens=False)
            cut = len(ids) > prompt.max_new_tokens
            ids = ids[: prompt.max_new_tokens]
            yield index, Generation(ids, self.decode(ids) if cut else text, "length" if cut else "eos", seconds)

    generate_sharing = generate
