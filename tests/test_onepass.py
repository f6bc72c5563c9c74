"""A window scored in one pass without a cache: equal to chunks over a cache, and no larger than was told before."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
)

from e2bench.experiments.windows import Cell, Protocol, items_of, measuring
from e2bench.models import attention, body, compiled, configured, memory
from e2bench.models.findings import NOTE, OK
from e2bench.models.loading import ModelSpec
from e2bench.models.local import Model
from e2bench.models.pieces import TokenPieces, tokenwise
from e2bench.rope.methods import RopeScaling

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=40),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}


def model_of(config: PretrainedConfig, tokenizer: Any, dtype: torch.dtype = torch.float32) -> Model:
    """A random model; weights large enough that every layer matters."""
    config.initializer_range = 0.2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Model(hf.to(dtype), tokenizer, name="random")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, pieces and blocks of a few tokens, so that a short input has several."""
    for module in (body, configured):
        monkeypatch.setattr(module, "CHUNK_TOKENS", 32)
        monkeypatch.setattr(module, "SCORED_ROWS", 16)
    monkeypatch.setattr(attention, "BAND_TOKENS", 16)
    monkeypatch.setitem(configured.PIECE_TOKENS, "cpu", 48)


def ids_of(rows: int, tokens: int) -> Tensor:
    return torch.randint(3, 500, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_equals_chunks_over_a_cache(tiny_model: Model, small_pieces: None, family: str) -> None:
    model = model_of(FAMILIES[family], tiny_model.tokenizer)
    assert model.one_pass and model.scoring == "windows in one pass, no cache"
    for ids in (ids_of(1, 150), ids_of(3, 97)):
        chunked = model.token_nll(ids, cached=True)
        torch.testing.assert_close(model.token_nll(ids), chunked, rtol=1e-6, atol=1e-5)
        means = model.token_nll(ids).mean(), chunked.mean()
        assert float(means[0]) == pytest.approx(float(means[1]), rel=1e-6)
        torch.testing.assert_close(model.token_nll(ids, first=90), chunked[:, 89:], rtol=1e-6, atol=1e-5)


def test_rows_together_equal_rows_alone(tiny_model: Model, small_pieces: None) -> None:
    ids = ids_of(5, 64)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        model = model_of(LlamaConfig(**SIZES), tiny_model.tokenizer, dtype)
        alone = torch.cat([model.token_nll(row[None]) for row in ids])
        assert float((model.token_nll(ids) - alone).abs().max()) <= limit


def peak_bytes(call: Any) -> int:
    """The most that tensors took together at any time inside a call."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    taken = torch.tensor([e.nbytes() for e in events if e.name() == "[memory]"], dtype=torch.float64)
    return int(taken.cumsum(0).max())


def test_memory_is_one_layers_states_and_told_before(tiny_model: Model, small_pieces: None) -> None:
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": 20, "intermediate_size": 640})
    model = model_of(config, tiny_model.tokenizer)
    rows, tokens = 2, 512
    peak = peak_bytes(lambda: model.token_nll(ids_of(rows, tokens), first=tokens - 8))
    assert 0.6 * model.scoring_bytes(tokens, rows) < peak < 1.05 * model.scoring_bytes(tokens, rows)
    assert peak < 0.5 * peak_bytes(lambda: model.token_nll(ids_of(rows, tokens), first=tokens - 8, cached=True))
    with model.pieces.of(rows * tokens):  # the MLP whole: all of its width at once
        assert peak_bytes(lambda: model.token_nll(ids_of(rows, tokens), first=tokens - 8)) > 1.5 * peak


def test_where_attention_is_not_ours_windows_go_in_chunks(tiny_model: Model) -> None:
    model = model_of(FalconConfig(**{**SIZES, "num_key_value_heads": 4}), tiny_model.tokenizer)
    assert not model.one_pass and "in chunks over a cache" in model.scoring
    assert model.scoring_bytes(9000) == model.needed_bytes(9000) and model.scoring_rows(9000, 8) == 1


class Counting(torch.nn.Module):
    """A tokenwise module that gives, as some routers do, more than states."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.Identity()
        self.mlp.forward = self.counted  # what accelerate does
        self.seen: list[int] = []

    def counted(self, hidden: Tensor) -> Any:
        self.seen.append(hidden.shape[1])
        return (hidden, hidden.sum()) if hidden.shape[-1] == 3 else 2 * hidden


def test_a_module_is_cut_and_put_back_and_one_that_gives_more_runs_whole() -> None:
    model = Counting()
    cut, states = TokenPieces(tokenwise(model), 4), torch.randn(2, 5, 2)
    with cut:
        assert torch.equal(model.mlp(states), 2 * states)
        assert model.mlp(torch.randn(2, 5, 3))[0].shape == (2, 5, 3)
    assert model.seen == [4, 4, 2, 4, 5]
    model.mlp(states)
    assert model.seen[-1] == 5 and model.mlp.forward == model.counted


def test_each_key_head_is_spread_over_its_group(tiny_model: Model) -> None:
    """What float32 takes on a GPU, on the CPU: heads spread, no grouping left to the kernel."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (6, 2, 2))
    want, _ = attention.grouped_attention(model := torch.nn.Identity(), query, key, value)
    wide = attention.expanded(key, 6), attention.expanded(value, 6)
    assert [states.shape[1] for states in wide] == [6, 6] and attention.expanded(query, 6) is query
    torch.testing.assert_close(attention.grouped_attention(model, query, *wide)[0], want)


def test_windows_are_scored_together_where_they_fit(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(LlamaConfig(**SIZES), tiny_model.tokenizer)
    assert model.scoring_rows(512) == 8 and model.scoring_rows(8192) == 1
    assert model.scoring_rows(8192, 3) == 3
    monkeypatch.setattr(model, "free_bytes", lambda: 5 * model.scoring_bytes(512))
    assert model.scoring_rows(512) == 2 and model.scoring_rows(512, 1) == 1


def test_out_of_memory_scores_half_of_the_windows_at_a_time(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_of(1, 150)[0].tolist()
    protocol = Protocol("press", 8)
    cell = Cell("0" * 16, ids, 32, RopeScaling("none"), tuple(protocol.windows(len(ids), 32)))
    measure = lambda: next(measuring(tiny_model, protocol, 7)(items_of([cell]), None))[1]  # type: ignore  # noqa: E731
    want, seen, score = measure(), [], tiny_model.token_nll

    def tight(rows: Tensor, **options: Any) -> Tensor:
        seen.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(rows, **options)

    monkeypatch.setattr(tiny_model, "token_nll", tight)
    found = measure()
    assert found["nll_sum"] == pytest.approx(want["nll_sum"], rel=1e-6) and found["windows"] == want["windows"] == 16
    assert max(seen) == 7 and seen[1:5] == [7, 4, 2, 2]


@pytest.mark.parametrize(("backend", "works"), [("eager", True), ("no-such-backend", False)])
def test_a_compiled_pass_is_tried_and_the_plain_one_is_right_where_it_fails(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, backend: str, works: bool
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", backend)  # `eager` traces the pass and calls no compiler
    plain, model = (Model.load(ModelSpec(model=str(tiny_folder), compile=chosen)) for chosen in (False, True))
    assert model.scoring.endswith(", compiled") == works and "compiled" not in plain.scoring
    found = next(f for f in model.findings if f.check == "compile")
    assert found.level == (OK if works else NOTE)
    for factor, ids in ((1.0, ids_of(1, 90)), (4.0, ids_of(3, 70))):
        with plain.scaled("linear", factor), model.scaled("linear", factor):
            torch.testing.assert_close(model.token_nll(ids), plain.token_nll(ids), rtol=1e-6, atol=1e-5)


def script(name: str, monkeypatch: pytest.MonkeyPatch, *options: object) -> dict[str, Any]:
    """Run a benchmark in this process; its global names."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, options)])
    return runpy.run_path(str(path), run_name="__main__")


def test_the_gpu_benchmark_runs_on_a_cpu_and_finds_equal_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("gpu", monkeypatch, "--cpu", "--out", tmp_path)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name.split()[0] for name in parts} == {
        "ceilings",
        "scoring",
        "batches",
        "decode",
        "generation",
        "training",
        "invariant",
        "flash",
    }
    assert all(part["rows"] and "failed" not in part for part in parts.values())
    assert parts["scoring tiny"]["rows"][-1]["difference_of_means"] <= 1e-6
    assert parts["generation tiny"]["rows"][0]["equal_to_plain"] == 1


def test_the_table_of_costs_in_the_docs_is_what_its_script_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script("cost", monkeypatch)
    page = Path(__file__).parents[1] / "docs" / "performance.md"
    assert capsys.readouterr().out.strip() in page.read_text(encoding="utf-8")


def test_a_7b_model_is_told_to_need_less_than_the_cards_that_should_hold_it() -> None:
    """24 GiB at 64k and 34 GiB at 200k, weights (12.55 GiB) included; an H100 took 18.6 and 31.7 with the MLP whole."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    for tokens, most_gib, whole_gib in ((65536, 24, 18.6), (204800, 34, 31.7)):
        told_gib = 12.55 + memory.pass_bytes(config, 2, tokens, 1, 8192) / 2**30
        assert 0.85 * whole_gib < told_gib < most_gib
