"""A served model: the `generate` of `e2bench.models.local` over an OpenAI-compatible endpoint.

Prompts are truncated and wrapped here, with the named tokenizer, and sent as token ids to /v1/completions (vLLM,
SGLang and llama.cpp take them), or as text where the server takes only that (`transformers serve`). Decoding is
greedy. Answers are streamed, so that a settled one is stopped as with a loaded model. The RoPE scaling is the
server's own: it was fixed when the server started (`e2bench serve-command` prints how).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

from e2bench.errors import E2BenchError, ModelError, RunFailed
from e2bench.models.endpoint import Broken, Endpoint, NoAnswer, Refused
from e2bench.models.protocols import Generation, Prompt
from e2bench.models.texts import Remote
from e2bench.rope.methods import RopeScaling
from e2bench.rope.windows import Scale, ScaleRule, scale_rule

APIS = {"completions": "/completions", "chat": "/chat/completions"}
EXTENDED = ("vllm", "sglang")  # take `stop_token_ids`, `min_tokens` and penalties beside OpenAI's own fields
# A checkpoint's generation_config.json may hold penalties, which these servers apply where a request names none.
NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
TOKEN_CHARS = 256  # no vocabulary has a longer token
FINISHES = {"stop": "eos", "length": "length", "scored": "scored"}
QUEUED = 4  # batches of `concurrency` handed over at once, so that one slow answer leaves no gap
HALF = "\N{REPLACEMENT CHARACTER}"
MORE_TOKENS = 4  # beyond the budget, and a sixteenth of it: another split of the same text may have so many more
MOST_NAME = 512  # characters of a model's name
PROBE = "The quick brown fox jumps over the lazy dog."


@dataclass
class Answer:
    """One answer as it grows. finish: OpenAI's `stop` or `length`, or ours once enough is there."""

    text: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Add one event of the stream, of either endpoint, or a whole answer. Raises TypeError for another form."""
        usage = event.get("usage") or {}
        self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
        self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)
        choices = event.get("choices") or []
        if len(choices) > 1 or any(choice.get("index") for choice in choices):
            raise TypeError("several choices, where one was asked for")
        for choice in choices:
            piece = choice.get("text")
            if piece is None:
                piece = (choice.get("delta") or choice.get("message") or {}).get("content")
            if piece and self.finish:
                raise TypeError("text behind the end of the answer")
            # half a surrogate pair, which JSON can hold and no tokenizer reads, becomes a question mark
            self.text += (piece or "").encode("utf-8", "replace").decode("utf-8")
            finish = choice.get("finish_reason")
            if not isinstance(finish, str | None):
                raise TypeError(f"a finish_reason that is a {type(finish).__name__}")
            self.finish = finish or self.finish


def _count(value: Any, before: int | None) -> int | None:
    """A number of tokens, or what was known before where a server says something else."""
    return value if isinstance(value, int) and value > 0 else before


class ServerRope:
    """Stands where a loaded model has its RopeSwitch: the server's scaling cannot be changed from here."""

    def __init__(self, context: int | None) -> None:
        self.context = context

    def using(self, scaling: RopeScaling | None, length: int | None = None) -> AbstractContextManager[None]:
        """Nothing can be changed. Refuses a window beyond the server's context."""
        self.check_length(length)
        return nullcontext()

    def check_length(self, length: int | None) -> None:
        """Refuse a window beyond the server's context."""
        if length is not None and self.context is not None and length > self.context:
            raise E2BenchError(
                f"the server's context is {self.context} tokens, the window {length}: give --window {self.context}, or "
                "start the server with a longer one (e2bench serve-command)"
            )

    def in_force(self) -> list[float]:
        """Inverse frequencies: the server does not tell them."""
        return []


class ServedModel(Remote):
    """A model behind `endpoint`, with its tokenizer here. Does what LongBench and passkey ask of a model.

    served: its name at the server.    native: L, when it is known.    concurrency: requests in flight.
    api: `completions` or `chat`; with `chat` the server applies its own chat template to the text.
    warn: takes one line, once, when the server counts a prompt's tokens otherwise.
    """

    dtype, attention, device = "server", "server", None

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Any,
        *,
        served: str | None,
        native: int | None,
        concurrency: int = 8,
        api: str = "completions",
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__()
        if api not in APIS:
            raise E2BenchError(f"--served-api {api!r} is not known; choose one of {', '.join(APIS)}")
        if concurrency < 1:
            raise E2BenchError(f"--concurrency {concurrency} is not possible; it must be at least 1")
        self.endpoint, self.tokenizer, self.concurrency, self.api, self.warn = (
            endpoint,
            tokenizer,
            concurrency,
            api,
            warn,
        )
        if api == "chat":
            tokenizer.chat_template = None  # the server wraps; `--chat-template auto` must not do it a second time
        self.served, entry = _choose(endpoint, served)
        self.name = self.served.rsplit("/", 1)[-1]
        self.extended = entry.get("owned_by") in EXTENDED
        self.context = _context(entry)
        if native is None and self.context is None:
            raise E2BenchError(
                "neither --tokenizer's config nor the server says the native window; give it with --native-window"
            )
        self.native_window = native or int(self.context or 0)
        known = self.context is not None and self.context > self.native_window
        self.own_scaling = RopeScaling("checkpoint", (self.context or 0) / self.native_window) if known else None
        self.rope = ServerRope(self.context)
        self._warned = False
        self.takes_ids = self._probe()

    # what it is

    def describe(self) -> dict[str, Any]:
        """The `model` part of run.json. The fingerprint is of the name and the tokenizer: the weights are not seen."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        return {
            "name": self.name,
            "path": self.endpoint.url,
            "fingerprint": hashlib.sha256(repr((self.served, self.api, vocabulary)).encode()).hexdigest(),
            "architecture": "served",
            "parameters": None,
            "native_window": self.native_window,
            "vocab_size": len(self.tokenizer),
            "served": {"model": self.served, "context": self.context, "api": self.api, "ids": self.takes_ids},
        }

    def needed_bytes(self, tokens: int, rows: int = 1) -> int:
        """Uses no local memory. Raises E2BenchError for more tokens than the server's context."""
        self.rope.check_length(tokens)
        return 0

    def decode_rows(self, tokens: int) -> int:
        """Prompts handed over together; `concurrency` of them are in flight at any time."""
        return QUEUED * self.concurrency

    def rule(self, scale: Scale | None, method: str | None) -> ScaleRule:
        """The scale is the server's; a number given sets the window (g·L) and is recorded. The rest is refused."""
        if method is not None:
            raise E2BenchError(f"--method {method} is fixed when a server starts; use it with e2bench serve-command")
        if scale is None:
            own = self.own_scaling or RopeScaling("none", 1)
            return ScaleRule("own", (own.factor,), own.method, self.native_window, own)
        rule = scale_rule(scale, None, self.native_window, None)
        if rule.kind != "fixed" or len(rule.values) != 1:
            raise E2BenchError(f"--scale {scale} cannot change a server; give the one number it was started with")
        return rule

    # generation

    def generate(
        self, prompts: Sequence[Prompt], scaling: RopeScaling | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Greedy continuations: (index of the prompt, result), as each answer is complete.

        When one fails for good, those in flight are still waited for and given, then the failure is raised.
        """
        failed = threading.Event()
        failure: E2BenchError | None = None

        def answer(prompt: Prompt) -> Generation | None:
            if failed.is_set():
                return None
            try:
                return self._generation(prompt)
            except E2BenchError:
                failed.set()
                raise

        pool = ThreadPoolExecutor(self.concurrency)
        futures = {pool.submit(answer, prompt): index for index, prompt in enumerate(prompts)}
        try:
            for future in as_completed(futures):
                try:
                    result = future.result()
                except E2BenchError as error:
                    failure = failure or error
                    continue
                if result is not None:
                    yield futures[future], result
        except BaseException:  # interrupted, or nobody wants the rest
            self.endpoint.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if failure is not None:
            raise failure

    generate_sharing = generate  # servers keep common beginnings themselves

    def _generation(self, prompt: Prompt) -> Generation:
        began = time.perf_counter()
        answer = self.endpoint.patiently(lambda: self._ask(self._prompt_of(prompt), prompt))
        if answer.prompt_tokens is not None:
            self._check_whole(answer.prompt_tokens, len(prompt.ids))
            if self.api == "completions":
                self._compare(answer.prompt_tokens, len(prompt.ids))
        finish = FINISHES.get(answer.finish)
        if finish is None:
            raise NoAnswer(
                f"{self.endpoint.url} ended an answer with {self.endpoint.shown(answer.finish)!r}, which is no answer "
                "(stop and length are); a sample left out would change the score: mend the server and give the same "
                "command again"
            )
        if not answer.text and (answer.completion_tokens or 0) > 1:
            raise ModelError(
                f"{self.endpoint.url} counted {answer.completion_tokens} tokens in an answer without text: the model "
                "thinks in a field of its own (reasoning_content); turn thinking off at the server"
            )
        if self.endpoint.key.is_in(answer.text):
            raise NoAnswer(
                f"{self.endpoint.url} gives back the key that it was sent, inside an answer, which would be stored; "
                "change the key, and do not use this server"
            )
        ids = self._counted(answer.text, prompt.max_new_tokens)
        if finish == "eos" and self.tokenizer.eos_token_id is not None:
            ids = [*ids, self.tokenizer.eos_token_id]  # counted, as with a loaded model
        return Generation(ids[: prompt.max_new_tokens], answer.text, finish, time.perf_counter() - began)

    def _counted(self, text: str, budget: int) -> list[int]:
        """An answer's ids by our own tokenizer. Raises NoAnswer for clearly more of them than were asked for.

        What the server says of its own number is not used. Half a character arrives as U+FFFD, which encodes to more
        tokens than it was: it counts once.
        """
        ids = self.encode(text, special_tokens=False)
        halves = text.count(HALF)
        tokens = len(self.encode(text.replace(HALF, ""), special_tokens=False)) + halves if halves else len(ids)
        if tokens > budget + MORE_TOKENS + budget // 16:
            raise NoAnswer(
                f"{self.endpoint.url} answers with {tokens} tokens where {budget} were asked for (by the tokenizer "
                "given here); it does not stop at max_tokens, or --tokenizer is not the served model's"
            )
        return ids[:tokens]

    def _ask(self, text: str | list[int], prompt: Prompt) -> Answer:
        """One request, read until it ends or no further token can matter."""
        stops = [self.decode([token]) for token in prompt.stop_ids]
        body: dict[str, Any] = {
            "model": self.served,
            "max_tokens": prompt.max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.api == "chat":
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        if self.extended:
            body |= NO_PENALTIES
        if self.extended and prompt.stop_ids:
            body |= {"stop_token_ids": sorted(prompt.stop_ids), "min_tokens": prompt.min_new_tokens}
        answer = Answer()
        with closing(self.endpoint.events(APIS[self.api], body)) as events:
            for event in events:
                self._check_model(event)
                self._take(answer, event, most_chars=TOKEN_CHARS * (prompt.max_new_tokens + 4))
                if cut := _stopped(answer.text, stops):
                    answer.text, answer.finish = cut, "stop"
                    break
                if prompt.settled and prompt.settled(answer.text):
                    answer.finish = "scored"
                    break
        if not answer.finish:
            raise Broken("an answer that breaks off before its end")
        return answer

    def _take(self, answer: Answer, event: dict[str, Any], most_chars: int) -> None:
        try:
            answer.take(event)
        except (AttributeError, TypeError) as error:
            said = self.endpoint.shown(error)
            raise ModelError(f"{self.endpoint.url} answers in another form than OpenAI's: {said}") from None
        if len(answer.text) > most_chars:
            raise ModelError(f"{self.endpoint.url} does not stop at max_tokens: {len(answer.text):,} characters so far")

    def _prompt_of(self, prompt: Prompt) -> str | list[int]:
        """What is sent: the ids, or the text that the server's tokenizer turns into them."""
        if self.takes_ids:
            return list(prompt.ids)
        ids, text = list(prompt.ids), prompt.text
        if self.api == "chat":
            whole = not text or len(self.encode(text)) > len(ids) + 1
            return self.decode(ids) if whole else text
        begin = self.tokenizer.bos_token or ""
        for way in (text, text.removeprefix(begin), self.decode(ids)):  # the server itself adds the BOS
            if way and self.encode(way) == ids:
                return way
        cut = not text or len(self.encode(text)) > len(ids) + 1
        return self.decode(ids) if cut else text

    def _check_model(self, event: dict[str, Any]) -> None:
        answered = event.get("model")
        if answered and _plain(str(answered)) != _plain(self.served):
            shown = self.endpoint.shown(answered)
            raise ModelError(
                f"{self.endpoint.url} was asked for {self.served!r} and answers as {shown!r}; name the model that "
                "it serves with --served-model"
            )

    def _check_whole(self, theirs: int, ours: int) -> None:
        """Raise ModelError where the server read less than was sent. Of texts it counts with its own tokenizer."""
        least = ours if self.takes_ids and self.api == "completions" else 0.8 * ours - 16
        if theirs < least:
            raise ModelError(
                f"{self.endpoint.url} read {theirs} tokens of a prompt that has {ours}: it cuts prompts without a "
                "word; start it with a longer context, or give a shorter --window"
            )

    def _compare(self, theirs: int, ours: int) -> None:
        if theirs != ours and not self._warned:
            self._warned = True
            self.warn(
                f"the server counts {theirs} tokens in a prompt that has {ours} here: "
                "is --tokenizer the served model's?"
            )

    def _probe(self) -> bool:
        """Ask for one token: is the model there, and does the server take token ids?"""
        ids = self.encode(PROBE)
        prompt = Prompt(ids, max_new_tokens=1, text=PROBE)
        tries = min(3, self.endpoint.attempts)
        if self.api == "completions":
            try:
                answer = self.endpoint.patiently(lambda: self._ask(ids, prompt), tries)
                return answer.prompt_tokens in (None, len(ids))
            except Refused as refused:
                if refused.status not in (400, 404, 422):
                    raise
        try:
            self.endpoint.patiently(lambda: self._ask(PROBE, prompt), tries)
        except Refused as refused:
            raise self._explained(refused) from None
        return False

    def _explained(self, refused: Refused) -> E2BenchError:
        if refused.status in (404, 405) and self.api == "completions" and "model" not in refused.reason.lower():
            return ModelError(
                f"{self.endpoint.url} has no {APIS[self.api]}; give --served-api chat if it has {APIS['chat']}"
            )
        names = self.endpoint.shown(", ".join(_models(self.endpoint, needed=False))) or "no list of models"
        return ModelError(f"{refused}; asked was --served-model {self.served}, the server has {names}")


def _stopped(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string that has something before it; empty when there is none."""
    body = text.lstrip("\n")
    found = [at for stop in stops if stop and (at := body.find(stop)) > 0]
    return text[: len(text) - len(body) + min(found)] if found else ""


def _plain(name: str) -> str:
    return name.partition("@")[0].rstrip("/")  # `transformers serve` appends @REVISION


def _models(endpoint: Endpoint, *, needed: bool) -> dict[str, dict[str, Any]]:
    """name: entry of /models. Where it is not needed, empty for a server without such a list.

    Raises ModelError when no server answers at all.
    """

    def listed() -> list[Any]:
        try:
            data = endpoint.get("/models").get("data")
            return data if isinstance(data, list) else []
        except (Broken, Refused):
            if needed:
                raise
            return []

    try:
        found = endpoint.patiently(listed, min(3, endpoint.attempts))
    except RunFailed as lost:
        reason = str(lost).partition(" is lost: ")[2].partition(";")[0]
        raise ModelError(
            f"no server to use at {endpoint.url}: {reason}; start it first (e2bench serve-command prints how)"
        ) from None
    return {str(entry["id"]): entry for entry in found if isinstance(entry, dict) and "id" in entry}


def _choose(endpoint: Endpoint, served: str | None) -> tuple[str, dict[str, Any]]:
    """The model's name at the server and its entry there; the only one listed when none was named."""
    entries = _models(endpoint, needed=served is None)
    if served is not None:
        return served, entries.get(served, {})
    if len(entries) != 1:
        names = endpoint.shown(", ".join(entries)) or "none"
        raise E2BenchError(
            f"the server {endpoint.url} lists {len(entries)} models ({names}); choose one: --served-model"
        )
    name, entry = next(iter(entries.items()))
    if endpoint.key.is_in(name) or len(name) > MOST_NAME:
        raise E2BenchError(
            f"the server {endpoint.url} calls its model {endpoint.shown(name)!r}, which cannot be stored; name it with "
            "--served-model"
        )
    return name, entry


def _context(entry: dict[str, Any]) -> int | None:
    """Tokens of the server's context: vLLM's and SGLang's `max_model_len`, llama.cpp's `meta.n_ctx`."""
    meta = entry.get("meta")
    value = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return _count(value, None)
