"""Decoding as a GPU does it, on a CPU: the kernel in Triton's interpreter, queued steps, prompts read together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PretrainedConfig

from e2bench.errors import ModelError
from e2bench.models import queued
from e2bench.models.decoding import packs
from e2bench.models.local import Model
from e2bench.models.protocols import Generation, Prompt
from e2bench.models.steps import NOT_FINITE, Row, choose

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
FAMILIES = [LlamaConfig(**SIZES), MistralConfig(**SIZES, sliding_window=20)]


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scaling: float | None, window: int | None = None
) -> Tensor:
    """What the kernel computes, row by row in float64."""
    rows = []
    for row, length in enumerate(lengths.tolist()):
        seen = slice(0 if window is None else max(0, length - window), length)
        heads = query.shape[1] // key.shape[1]
        keys, values = (x[row, :, seen].double().repeat_interleave(heads, 0) for x in (key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        rows.append((query[row].double() @ keys.transpose(1, 2) * scale).softmax(-1) @ values)
    return torch.stack(rows).to(query.dtype)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the kernel, its splits small, run by Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    if torch.cuda.is_available():
        pytest.skip("with a GPU the kernel is compiled: python benchmarks/gpu.py --exact tries it")
    from e2bench.models import decode_kernel

    monkeypatch.setattr(decode_kernel, "SPLIT", 32)
    monkeypatch.setattr(decode_kernel, "BLOCK", 16)
    return decode_kernel


@pytest.mark.parametrize(("heads", "groups", "dim"), [(4, 1, 16), (3, 3, 24), (2, 4, 64)])
@pytest.mark.parametrize("window", [None, 1, 20, 31, 500])
def test_the_kernel_is_attention_over_each_rows_own_tokens(
    kernel: Any, heads: int, groups: int, dim: int, window: int | None
) -> None:
    torch.manual_seed(heads)
    query = torch.randn(4, heads * groups, 1, dim)
    key, value = torch.randn(2, 4, heads, 100, dim)
    lengths = torch.tensor([1, 32, 65, 100])
    key[0, :, 1:], value[0, :, 1:] = torch.nan, torch.nan  # what lies behind a row's end is never read
    found = kernel.decode_attention(query, key, value, lengths, 0.3, window)
    torch.testing.assert_close(found, plain_attention(query, key, value, lengths, 0.3, window), rtol=1e-5, atol=1e-6)


def test_a_row_has_the_same_bits_whatever_stands_beside_it(kernel: Any) -> None:
    torch.manual_seed(0)
    query, (key, value) = torch.randn(3, 4, 1, 16), torch.randn(2, 3, 2, 128, 16)
    together = kernel.decode_attention(query, key, value, torch.tensor([70, 128, 3]), None)
    alone = kernel.decode_attention(query[:1], key[:1, :, :70], value[:1, :, :70], torch.tensor([70]), None)
    assert torch.equal(together[:1], alone)


@pytest.fixture(params=FAMILIES, ids=lambda config: config.model_type)
def model(request: pytest.FixtureRequest, tiny_model: Model) -> Model:
    """A random model whose next token hangs on every token before it."""
    config: PretrainedConfig = request.param
    config.initializer_range = 0.3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Model(hf, tiny_model.tokenizer, name="random")


def queue_on_a_cpu(monkeypatch: pytest.MonkeyPatch, attention: Callable[..., Tensor]) -> list[queued.QueuedSteps]:
    """Decode with `QueuedSteps`, without graphs; the steps that were made."""
    made: list[queued.QueuedSteps] = []

    def steps_for(model: Model, cache: Any) -> queued.QueuedSteps:
        model.graphs = False
        made.append(queued.QueuedSteps(model, cache, attention))
        return made[-1]

    monkeypatch.setattr("e2bench.models.decoding.steps_for", steps_for)
    monkeypatch.setattr(Model, "packed_tokens", 64)
    return made


def prompts_of(count: int) -> list[Prompt]:
    """Prompts of many lengths and budgets; some bar a stop token for a while, some are settled early."""
    found = []
    for at in range(count):
        ids = torch.randint(1, 500, (3 + at * 5 % 23,), generator=torch.Generator().manual_seed(at)).tolist()
        settled = (lambda text: len(text) > 12) if at % 3 == 2 else None
        stop = frozenset(range(1, 250)) if at % 3 == 1 else frozenset()
        found.append(Prompt(ids, 2 + at * 3 % 11, at % 4, stop, settled))
    return found


def answers(found: Sequence[tuple[int, Generation]]) -> dict[int, tuple[list[int], str, str]]:
    return {index: (one.ids, one.text, one.finish) for index, one in found}


def test_steps_queued_ahead_give_the_answers_of_steps_one_by_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(9)
    want = answers(list(model.generate(prompts)))
    made = queue_on_a_cpu(monkeypatch, plain_attention)
    assert answers(list(model.generate(prompts))) == want
    assert len(made) == 1 and {finish for _, _, finish in want.values()} == {"eos", "length", "scored"}


def test_prompts_that_begin_alike_share_a_queue(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    head = list(range(5, 25))
    prompts = [Prompt([*head, 30 + at, 40], 4 + at) for at in range(4)]
    want = answers(list(model.generate_sharing(prompts)))
    made = queue_on_a_cpu(monkeypatch, plain_attention)
    assert answers(list(model.generate_sharing(prompts))) == want
    assert len(made) == 1


def test_the_kernel_serves_a_whole_model(kernel: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(3)
    want = answers(list(model.generate(prompts)))
    queue_on_a_cpu(monkeypatch, kernel.decode_attention)
    assert answers(list(model.generate(prompts))) == want


def test_prompts_read_together_end_as_each_alone(model: Model) -> None:
    prompts = [list(range(3, 3 + length)) for length in (30, 9, 24)]
    together = model.prefill_together(prompts, model.new_cache(30, rows=3))
    alone = torch.cat([model.prefill(ids, model.new_cache(len(ids))) for ids in prompts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "tokens", "want"),
    [
        ([10, 10, 10], 30, [3]),
        ([10, 10, 10], 29, [2, 1]),
        ([10, 9, 9], 100, [3]),
        ([10, 8, 8], 100, [2, 1]),  # 26 tokens of 30: more than a tenth is padding
        ([50, 5, 5], 40, [1, 2]),
        ([10, 10], 0, [1, 1]),
    ],
)
def test_neighbours_of_about_one_length_are_read_together(lengths: list[int], tokens: int, want: list[int]) -> None:
    rows = [Row(at, Prompt([1] * length, 1)) for at, length in enumerate(lengths)]
    found = list(packs(rows, tokens))
    assert [len(pack) for pack in found] == want and [row for pack in found for row in pack] == rows


def test_no_finite_logit_is_no_token(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[0.0, torch.nan], [torch.inf, 0.0], [3.0, 2.0], [5.0, 9.0]])
    barred = torch.tensor([[False, False], [False, False], [True, False], [False, False]])
    assert choose(logits, barred).tolist() == [NOT_FINITE, NOT_FINITE, 1, 1]
    queue_on_a_cpu(monkeypatch, lambda *args: plain_attention(*args) * torch.inf)
    with pytest.raises(ModelError, match="not finite"):
        list(model.generate(prompts_of(2)))
