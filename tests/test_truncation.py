"""Middle truncation: LongBench's own steps written out slowly, and what holds for every prompt and limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from e2bench.errors import E2BenchError, UnknownName
from e2bench.models.local import Model
from e2bench.prompts.chat import ChatWrapper
from e2bench.prompts.truncation import fit, input_limit, truncate_middle

FREE = 10**9
TEXTS = st.text("ab 小明把。\n12é🎻", max_size=120)
INST = ChatWrapper("llama2", lambda prompt: f"[INST]{prompt}[/INST]", special_tokens=True)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Any:
    """The tokenizer as transformers loads it, for the reference."""
    return AutoTokenizer.from_pretrained(tiny_folder)


def official(tokenizer: Any, prompt: str, limit: int, wrap: ChatWrapper | None = None) -> list[int]:
    """Ids that LongBench feeds, step by step (THUDM/LongBench 2e00731, pred.py:55-68)."""
    tokenized = tokenizer(prompt, truncation=False)["input_ids"]
    if len(tokenized) > limit:
        half = int(limit / 2)
        first = tokenizer.decode(tokenized[:half], skip_special_tokens=True)
        last = tokenizer.decode(tokenized[-half:], skip_special_tokens=True)
        prompt = first + last
    if wrap is not None:
        prompt = wrap.apply(prompt)
    return tokenizer(prompt, truncation=False)["input_ids"]


@given(text=TEXTS, limit=st.integers(2, 80), wrapped=st.booleans())
@settings(max_examples=200)
def test_official_mode_feeds_what_longbench_feeds(
    tiny_model: Model, tokenizer: Any, text: str, limit: int, wrapped: bool
) -> None:
    wrap = INST if wrapped else None
    fitted = fit(text, tiny_model, limit=limit, room=FREE, wrap=wrap)
    assert fitted.ids == official(tokenizer, text, limit, wrap)
    assert fitted.prompt_tokens == len(tokenizer(text)["input_ids"])


@given(text=TEXTS, limit=st.integers(2, 80), room=st.integers(1, 80), mode=st.sampled_from(["official", "ids"]))
@settings(max_examples=200)
def test_the_room_is_never_exceeded(tiny_model: Model, text: str, limit: int, room: int, mode: str) -> None:
    fitted = fit(text, tiny_model, limit=limit, room=room, mode=mode, wrap=INST)
    assert fitted.kept_tokens <= room
    assert mode == "official" or fitted.kept_tokens <= limit


@given(text=TEXTS, spare=st.integers(0, 5), mode=st.sampled_from(["official", "ids"]))
def test_a_prompt_that_fits_is_left_alone(tiny_model: Model, text: str, spare: int, mode: str) -> None:
    ids = tiny_model.encode(text)
    fitted = fit(text, tiny_model, limit=len(ids) + spare, room=len(ids) + spare, mode=mode)
    assert (fitted.ids, fitted.text, fitted.prompt_tokens) == (ids, text, len(ids))


def test_the_exact_limit_is_no_reason_to_cut_and_one_more_token_is(tiny_model: Model) -> None:
    ids = tiny_model.encode("1234567")  # BOS and seven digits, each a token
    assert len(ids) == 8
    assert fit("1234567", tiny_model, limit=8, room=FREE).text == "1234567"
    # 7: half is 3, BOS takes one of the first three places
    assert fit("1234567", tiny_model, limit=7, room=FREE).text == "12567"
    assert fit("1234567", tiny_model, limit=6, room=FREE).text == "12567"
    assert tiny_model.decode(fit("1234567", tiny_model, limit=7, room=FREE, mode="ids").ids) == "124567"


@pytest.mark.parametrize("mode", ["official", "ids"])
def test_what_was_left_out_is_said(tiny_model: Model, mode: str) -> None:
    def truncated(limit: int, room: int) -> bool:
        return fit("1234567", tiny_model, limit=limit, room=room, mode=mode).truncated  # eight tokens with BOS

    assert truncated(7, FREE) is True  # by the limit
    assert truncated(9, 7) is True  # by the room alone
    assert truncated(8, 8) is False and truncated(9, 9) is False


def test_official_mode_puts_bos_back_once(tiny_model: Model) -> None:
    bos = tiny_model.tokenizer.bos_token_id
    for wrap in (None, INST):
        ids = fit("1234567890" * 3, tiny_model, limit=9, room=FREE, wrap=wrap).ids
        assert ids[0] == bos and ids.count(bos) == 1


def test_a_template_that_writes_bos_itself_gets_no_second_one(tiny_model: Model) -> None:
    bos = tiny_model.tokenizer.bos_token_id
    wrap = ChatWrapper("auto", lambda prompt: f"<s>[INST]{prompt}", special_tokens=False)
    assert fit("12", tiny_model, limit=99, room=FREE, wrap=wrap).ids.count(bos) == 1
    bare = ChatWrapper("auto", lambda prompt: prompt, special_tokens=False)  # writes no BOS, and wants none
    assert fit("12", tiny_model, limit=99, room=FREE, wrap=bare).ids == tiny_model.encode("12", special_tokens=False)


def test_a_cut_inside_a_character_leaves_the_replacement_mark_as_longbench_does(
    tiny_model: Model, tokenizer: Any
) -> None:
    text = "🎻" * 10  # four bytes, four tokens each
    assert len(tiny_model.encode(text)) == 41
    fitted = fit(text, tiny_model, limit=12, room=FREE)
    assert "�" in fitted.text
    assert fitted.ids == official(tokenizer, text, 12)


@given(ids=st.lists(st.integers(0, 9), max_size=40), limit=st.integers(0, 45))
def test_the_middle_goes_and_both_ends_stay(ids: list[int], limit: int) -> None:
    kept = truncate_middle(ids, limit)
    assert len(kept) == min(limit, len(ids))
    head = min(limit, len(ids)) // 2
    assert kept[:head] == ids[:head]
    assert kept[head:] == ids[len(ids) - (len(kept) - head) :]


@pytest.mark.parametrize(
    ("window", "limit"),
    [(4096, 3500), (8192, 7500), (16384, 15500), (32768, 31500), (65536, 63500), (1024, 500), (5000, 3500)],
)
def test_limits_of_the_usual_windows_are_the_official_ones(window: int, limit: int) -> None:
    assert input_limit(window, 512) == limit


def test_a_window_below_1024_gives_all_but_the_budget() -> None:
    assert input_limit(600, 128) == 472 and input_limit(130, 128) == 2


@pytest.mark.parametrize("window", [100, 128, 129])
def test_a_window_that_cannot_hold_budget_and_input_is_refused(window: int) -> None:
    with pytest.raises(E2BenchError, match="--window of at least 130"):
        input_limit(window, 128)


def test_an_unknown_mode_is_refused(tiny_model: Model) -> None:
    with pytest.raises(UnknownName, match=r"^unknown truncation 'oficial'.*did you mean 'official'"):
        fit("x", tiny_model, limit=9, room=9, mode="oficial")
