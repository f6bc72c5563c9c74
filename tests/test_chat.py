"""Chat wrappers: what is put around a prompt, and that BOS comes once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.models.local import Model
from e2bench.prompts.chat import VICUNA_TEMPLATE, chat_wrapper
from e2bench.prompts.truncation import fit
from e2bench.tasks.longbench import LONGBENCH
from e2bench.train.layouts import sharegpt_segments

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def templated(tiny_model: Model) -> Any:
    """The tiny tokenizer with a chat template of its own."""
    tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_auto_is_the_tokenizers_own_template_or_none(tiny_model: Model, templated: Any) -> None:
    assert chat_wrapper("auto", tiny_model.tokenizer) is None
    assert chat_wrapper("none", templated) is None
    wrapper = chat_wrapper("auto", templated)
    assert wrapper is not None and wrapper.name == "auto"
    assert wrapper.apply("Hello") == "<s>[user]Hello[assistant]"


@given(prompt=st.text(max_size=30))
def test_llama2_is_longbenchs_wrapper_around_any_text(prompt: str) -> None:
    wrapper = chat_wrapper("llama2", None)
    assert wrapper is not None and wrapper.special_tokens
    assert wrapper.apply(prompt) == f"[INST]{prompt}[/INST]"  # LongBench 2e00731, pred.py:39


def test_a_file_takes_the_place_of_the_tokenizers_template(templated: Any, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("<{{ messages[0].content }}>", encoding="utf-8")
    wrapper = chat_wrapper(str(tmp_path / "own.jinja"), templated)
    assert wrapper is not None and wrapper.apply("x") == "<x>"
    (tmp_path / "own.jinja").write_text("({{ messages[0].content }})", encoding="utf-8")
    other = chat_wrapper(str(tmp_path / "own.jinja"), templated)
    assert other is not None and other.name.startswith("own.jinja ") and other.name != wrapper.name


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('no system') }}", "{{ x.y.z }}", "{{ 1 / 0 }}"])
def test_a_template_that_cannot_wrap_is_one_line(templated: Any, tmp_path: Path, template: str) -> None:
    (tmp_path / "bad.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(E2BenchError, match="chat template") as caught:  # at once, not at the first prompt
        chat_wrapper(str(tmp_path / "bad.jinja"), templated)
    assert "\n" not in str(caught.value)


def test_a_template_cannot_reach_into_python(templated: Any, tmp_path: Path) -> None:
    (tmp_path / "evil.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}", encoding="utf-8")
    with pytest.raises(E2BenchError, match="unsafe"):
        chat_wrapper(str(tmp_path / "evil.jinja"), templated)


def test_unknown_and_missing_templates_are_refused(templated: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'llama2'"):
        chat_wrapper("lama2", templated)
    with pytest.raises(DataError, match=r"absent\.jinja cannot be read"):
        chat_wrapper(str(tmp_path / "absent.jinja"), templated)
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"binary\.jinja cannot be read"):
        chat_wrapper(str(tmp_path / "binary.jinja"), templated)


def fastchats(turns: list[str]) -> str:
    """FastChat's own text of a conversation that a user begins; an even number of turns ends in an answer."""
    conversation = pytest.importorskip("fastchat.conversation").get_conv_template("vicuna_v1.1")
    for at, text in enumerate(turns):
        conversation.append_message(conversation.roles[at % 2], text)
    if len(turns) % 2:
        conversation.append_message(conversation.roles[1], None)
    return str(conversation.get_prompt())


@pytest.mark.parametrize("name", ["vicuna", "longchat"])
@given(prompt=st.text(min_size=1, max_size=30))
def test_vicuna_and_longchat_are_wrapped_as_fastchat_0_2_36_wraps_them(name: str, prompt: str) -> None:
    wrapper = chat_wrapper(name, None)
    assert wrapper is not None and wrapper.special_tokens
    assert wrapper.apply(prompt) == fastchats([prompt])


@pytest.mark.parametrize("turns", [["Hi"], ["Hi", "Hello."], ["Hi", "Hello.", "And?"], ["a", "b", "c", "d"]])
def test_the_template_saved_beside_a_tuned_model_is_fastchats_conversation(templated: Any, turns: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
    text = templated.apply_chat_template(
        messages, chat_template=VICUNA_TEMPLATE, tokenize=False, add_generation_prompt=bool(len(turns) % 2)
    )
    assert text == f"<s>{fastchats(turns)}"
    trained = "".join(
        s.text + "</s>" * s.ends for s in sharegpt_segments({"conversations": messages}, templated, "vicuna")
    )
    if len(turns) % 2 == 0:
        assert text == f"<s>{trained}"


@pytest.mark.parametrize("name", ["auto", "llama2"])
def test_bos_comes_once_around_a_wrapped_prompt(tiny_model: Model, templated: Any, name: str) -> None:
    fitted = fit("What is 2 + 2?", tiny_model, limit=500, room=500, wrap=chat_wrapper(name, templated))
    assert fitted.ids[0] == tiny_model.tokenizer.bos_token_id
    assert fitted.ids.count(tiny_model.tokenizer.bos_token_id) == 1


def test_six_tasks_are_never_wrapped() -> None:
    assert sum(not task.chat_template for task in LONGBENCH) == 6
