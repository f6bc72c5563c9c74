"""Names that transformers changed: the old and the new one are both found by signature."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from e2bench import compat
from e2bench.models.local import Model


class NewBody:
    def forward(self, input_ids: Any, cache: Any = None, use_cache: bool = False) -> None: ...


class OldBody:
    def forward(self, input_ids: Any, past_key_values: Any = None, use_cache: bool = False) -> None: ...


@pytest.mark.parametrize(("body", "name"), [(NewBody(), "cache"), (OldBody(), "past_key_values")])
def test_a_cache_is_handed_over_under_the_name_that_a_forward_pass_takes(body: Any, name: str) -> None:
    cache = object()
    assert compat.cache_arguments(body, cache) == {name: cache, "use_cache": True}
    assert compat.cache_arguments(body, None) == {name: None, "use_cache": False}


def test_the_installed_transformers_takes_the_cache_without_a_warning(
    tiny_model: Model, recwarn: pytest.WarningsRecorder
) -> None:
    cache = tiny_model.new_cache(4)
    tiny_model.hidden(torch.tensor([[1, 2, 3]]), cache)
    assert cache.get_seq_length() == 3
    assert not [warning for warning in recwarn if "deprecated" in str(warning.message)]


def test_rope_functions_get_only_what_they_take() -> None:
    assert compat.rope_frequencies(lambda config: config, "c", seq_len=4, layer_type="full") == "c"
    takes_all = compat.rope_frequencies(lambda config, **options: options, "c", seq_len=4, layer_type=None)
    assert takes_all == {"seq_len": 4}
    old = compat.rope_frequencies(lambda config, device=None, seq_len=None: (device, seq_len), "c", seq_len=4)
    assert old == (None, 4)


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_is_turned_on_by_the_newest_name(name: str) -> None:
    called: list[str] = []
    off = "disable_input_require_grads"
    methods = {f"{name}_enable": lambda self: called.append(name), off: lambda self: called.append(off)}
    compat.enable_activation_checkpointing(type("Model", (), methods)())
    assert called == [name, off]
