"""Tokenizers: loaded so that they give the ids of their own tokenizer.json, and end no text with EOS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2bench.errors import ModelError, is_panic, one_line
from e2bench.models.findings import NOTE, OK, find

CHECK = "tokenizer"
# Texts on which pre-tokenizers differ: digits, runs of spaces, newlines, contractions, scripts, punctuation.
PROBES = (
    "The pass key is 12345.  Remember it.\n\nDon't  forget 67890",
    "x = [1, 22, 333, 4444];\n\tif (y != 'a_b'):   return\r\n\r\n",
    "we're they'll I'd o'clock CAN'T 'quoted' \"twice\" -- … — 100% €3.50",
    "小明把地图放在图书馆里。2024年3月15日，３個。 日本語のテキスト 한국어 Привет мир naïve café 🙂👍🏽",
    "   leading and trailing   \n\n\n  ",
)


def checked(tokenizer: Any, file: Path | None, reload: Any) -> Any:
    """A tokenizer that gives the ids of `file`, its own tokenizer.json (None: there is none), and no final EOS.

    reload: gives the tokenizer of the file itself (transformers' plain fast class), where the loaded one differs.
    Raises ModelError where neither gives the file's ids.
    """
    with unbroken(tokenizer):
        for text in PROBES:  # one that breaks down does so now
            tokenizer.decode(tokenizer(text, verbose=False)["input_ids"])
        if _without_dropout(getattr(tokenizer, "backend_tokenizer", None)):
            effect = "one text would have other ids each time"
            find(CHECK, NOTE, "it leaves merges out at random (BPE dropout)", effect, "turned off")
        if file is not None:
            tokenizer = _as_in_file(tokenizer, file, reload)
        return _without_eos(tokenizer)


@contextmanager
def unbroken(tokenizer: Any) -> Iterator[None]:
    """Turn a breakdown of the tokenizer's own code into one line."""
    try:
        yield
    except (OverflowError, TypeError, ValueError, RuntimeError) as error:
        raise _broken(tokenizer, error) from None
    except BaseException as error:
        if not is_panic(error):
            raise
        raise _broken(tokenizer, error) from None


def _broken(tokenizer: Any, error: BaseException) -> ModelError:
    name = getattr(tokenizer, "name_or_path", "") or "the model"
    reason = one_line(error)[:160] or type(error).__name__
    return ModelError(
        f"the tokenizer of {name} breaks down on a text ({reason}); its files are damaged or of another version: "
        "give a good one with --tokenizer"
    )


def _as_in_file(tokenizer: Any, file: Path, reload: Any) -> Any:
    from tokenizers import Tokenizer

    try:
        own = Tokenizer.from_file(str(file))
    except BaseException as error:  # the package raises plain Exception for any damage
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ModelError(f"{file} cannot be read: {' '.join(str(error).split())[:160]}") from None
    _without_dropout(own)
    differing = _first_difference(tokenizer, own)
    if differing is None:
        find(CHECK, OK, f"{type(tokenizer).__name__} gives the ids of {file.name}")
        return tokenizer
    plain = reload()
    _without_dropout(plain.backend_tokenizer)
    if _first_difference(plain, own) is not None:
        raise ModelError(
            f"the tokenizer loaded for {file.parent} splits {differing!r} otherwise than its own tokenizer.json, "
            "and so does the file's own class; give the right one with --tokenizer"
        )
    find(
        CHECK,
        NOTE,
        f"{type(tokenizer).__name__} (tokenizer_config.json's tokenizer_class) splits {differing!r} otherwise than "
        f"{file.name}",
        "the model would read other tokens than it was trained on",
        f"{file.name} is used as it is",
    )
    return plain


def _without_dropout(backend: Any) -> bool:
    """Turn BPE dropout off; whether it was on."""
    model: Any = getattr(backend, "model", None)
    if not getattr(model, "dropout", None):
        return False
    model.dropout = None
    return True


def _first_difference(tokenizer: Any, own: Any) -> str | None:
    """The first probe, cut short, whose ids differ; special tokens left out, since flags may add or drop them."""
    for text in PROBES:
        theirs = own.encode(text, add_special_tokens=False).ids
        if tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] != theirs:
            return text[:24]
    return None


def _without_eos(tokenizer: Any) -> Any:
    """The tokenizer, changed where an encoding ends in EOS: a prompt that ends so is over before the answer."""
    eos = tokenizer.eos_token_id
    body = tokenizer("a b", add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer("a b", verbose=False)["input_ids"]
    if eos is None or not whole or whole[-1] != eos or (body and body[-1] == eos):
        find("end of text", OK, "an encoding does not end in EOS")
        return tokenizer
    name = f"{tokenizer.eos_token!r} (add_eos_token)"
    front = whole[: _at(whole, body)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tokenizer.add_eos_token = False
    else:
        from tokenizers.processors import TemplateProcessing

        tokens = tokenizer.convert_ids_to_tokens(front)
        single = [*tokens, "$A"]
        pairs = list(dict(zip(tokens, front, strict=True)).items())
        backend.post_processor = TemplateProcessing(
            single=" ".join(single), pair=" ".join([*single, "$B"]), special_tokens=pairs
        )
    if tokenizer("a b", verbose=False)["input_ids"][-1:] == [eos]:
        raise ModelError(f"every encoding ends in {name}, and it cannot be taken off; give another --tokenizer")
    find(
        "end of text",
        NOTE,
        f"an encoding ends in {name}",
        "a prompt would be over before its answer, and a text's loss would count EOS",
        "it is left off",
    )
    return tokenizer


def _at(whole: list[int], part: list[int]) -> int:
    return next((at for at in range(len(whole)) if whole[at : at + len(part)] == part), 0)


def check_vocabulary(tokenizer: Any, rows: int, name: str) -> None:
    """Refuse a tokenizer that is clearly another model's; a few added tokens without a row matter only if used.

    rows: of the embedding.
    """
    without = [token for token, at in tokenizer.get_vocab().items() if at >= rows]
    if not without:
        return
    added = set(tokenizer.get_added_vocab())
    if not set(without) <= added:
        raise ModelError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {rows}; "
            "they do not belong together: give the right one with --tokenizer"
        )
    find(
        "vocabulary",
        NOTE,
        f"{len(without)} added tokens have no embedding row ({without[0]!r} …)",
        "a prompt that holds one is refused",
    )


def check_ids(ids: list[int], vocabulary: int, tokenizer: Any) -> list[int]:
    """The ids themselves. Raises ModelError for one that the model has no embedding row for."""
    if ids and max(ids) >= vocabulary:
        token = tokenizer.convert_ids_to_tokens([max(ids)])[0]
        raise ModelError(
            f"a prompt holds the token {token!r} (id {max(ids)}), for which the model has no embedding row "
            f"(it has {vocabulary}); the tokenizer is another model's, or the token was never trained: give --tokenizer"
        )
    return ids
