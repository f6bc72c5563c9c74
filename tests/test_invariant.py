"""`--batch-invariant`: the same bits whatever is answered or scored beside an item."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_processes import lines_of
from test_queued import plain_attention, queue_on_a_cpu
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MixtralConfig, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import e2bench
from e2bench.errors import E2BenchError, ModelError
from e2bench.experiments.sharing import is_worth
from e2bench.files import read_json
from e2bench.models.body import DECODE_ROWS
from e2bench.models.invariant import InvariantModel
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.models.steps import Row, Steps

ROWS = DECODE_ROWS["cpu"]
SIZES = {"vocab_size": 512, "hidden_size": 96, "intermediate_size": 250, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "heads of 10": LlamaConfig(**SIZES | {"hidden_size": 60}),  # no row of keys begins at 64 bytes
    "parts of threads": LlamaConfig(**SIZES | {"hidden_size": 48, "intermediate_size": 11008, "num_hidden_layers": 1}),
    "sliding window": MistralConfig(**SIZES, sliding_window=24),
}
Bits = dict[tuple[int, ...], list[bytes]]  # of a prompt: its logits at each step


def made(config: PretrainedConfig, dtype: torch.dtype, tokenizer: Any, kind: type[Model] = InvariantModel) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = kind(hf, tokenizer, name="random")
    assert model.grouped and getattr(model, "rows", ROWS) == ROWS
    return model


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Bits:
    """The logits from which each prompt's tokens are chosen, bit by bit, as they are made."""
    bits: Bits = {}

    def first(self: Steps, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        for row, values in zip(rows, logits, strict=True):
            bits.setdefault(tuple(row.prompt.ids), []).append(values.clone().view(torch.uint8).numpy().tobytes())
        return plain(self, logits, rows)

    plain = Steps.first
    monkeypatch.setattr(Steps, "first", first)
    return bits


def prompts_of(count: int) -> list[Prompt]:
    """Unequal prompts; every third is settled early."""
    found = []
    for at in range(count):
        ids = torch.randint(1, 500, (5 + at * 37 % 150,), generator=torch.Generator().manual_seed(at)).tolist()
        found.append(Prompt(ids, 6, settled=(lambda text: len(text) > 6) if at % 3 == 1 else None))
    return found


def bits_of(model: Model, batches: Sequence[Sequence[Prompt]], seen: Bits) -> Bits:
    seen.clear()
    for batch in batches:
        for _ in model.generate(batch):
            pass
    return dict(seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_row_of_a_product_depends_on_how_many_rows_there_are_alone(dtype: torch.dtype) -> None:
    """What fixed rows build on; the last line is why it is needed (oneDNN in bfloat16 may do without)."""
    torch.manual_seed(0)
    for inside, outside in ((64, 512), (576, 1536), (1536, 576), (100, 52)):
        weight, row = torch.randn(outside, inside).to(dtype), torch.randn(inside).to(dtype)
        by_rows = []
        for rows in (1, 2, 3, ROWS):
            found = []
            for place in range(rows):
                states = torch.randn(rows, inside).to(dtype)
                states[place] = row
                found.append(F.linear(states, weight)[place])
            assert all(torch.equal(one, found[0]) for one in found), (inside, outside, rows)
            by_rows.append(found[0])
        if dtype == torch.float32:
            torch.testing.assert_close(by_rows[0], by_rows[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "dtype", "count"),
    [
        ("llama", torch.float32, 1),
        ("llama", torch.float32, 2),
        ("llama", torch.bfloat16, 1),
        ("heads of 10", torch.float32, 1),
        ("heads of 10", torch.bfloat16, 1),
        ("parts of threads", torch.float32, 3),
        ("sliding window", torch.float32, 1),
    ],
)
def test_logits_have_the_same_bits_in_any_batch(
    name: str, dtype: torch.dtype, count: int, tiny_model: Model, seen: Bits
) -> None:
    with threads(count):
        model = made(CONFIGS[name], dtype, tiny_model.tokenizer)
        prompts = prompts_of(11)
        alone = bits_of(model, [[prompt] for prompt in prompts], seen)
        assert {len(steps) for steps in alone.values()} > {6}  # some ended early
        batches = {
            "3": [prompts[at : at + 3] for at in range(0, 11, 3)],
            "8": [prompts[:8], prompts[8:]],
            "all, more than a step has rows": [prompts],
            "backwards": [prompts[::-1]],
            "other neighbours": [prompts[at::4] for at in range(4)],
        }
        for what, some in batches.items():
            assert bits_of(model, some, seen) == alone, what
        full = [Prompt(prompt.ids, prompt.max_new_tokens) for prompt in prompts]
        for ids, steps in bits_of(model, [full], seen).items():  # no row ends before the others
            assert steps[: len(alone[ids])] == alone[ids]


def test_without_it_other_batches_have_other_bits(tiny_model: Model, seen: Bits) -> None:
    """So that the tests above can fail."""
    model = made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer, Model)
    prompts = prompts_of(8)
    assert bits_of(model, [[prompt] for prompt in prompts], seen) != bits_of(model, [prompts], seen)


def test_a_beginning_that_prompts_share_is_read_anew(tiny_model: Model, seen: Bits) -> None:
    model = made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer)
    head = torch.randint(1, 500, (150,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [Prompt([*head[:at], at, *head[at + 1 :]], 3) for at in (140, 100, 64, 10)]
    alone = bits_of(model, [[prompt] for prompt in prompts], seen)
    seen.clear()
    assert [index for index, _ in model.generate_sharing(prompts)] == [0, 1, 2, 3]
    assert dict(seen) == alone
    assert not is_worth(model, prompts, 1)
    assert is_worth(made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer, Model), prompts, 1)


def test_queued_steps_have_the_same_bits_too(tiny_model: Model, seen: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: every row of the cache at every step, the pass filled up, attention by a kernel."""
    model = made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer)
    steps = queue_on_a_cpu(monkeypatch, plain_attention)
    prompts = prompts_of(6)
    found: list[dict[int, Any]] = []
    logits: list[Bits] = []
    plain = Model.head

    def head(self: Model, hidden: torch.Tensor) -> torch.Tensor:
        assert hidden.shape[0] in (1, ROWS)
        return plain(self, hidden)

    monkeypatch.setattr(Model, "head", head)
    for batches in ([[prompt] for prompt in prompts], [prompts], [prompts[::-1]]):
        answers: dict[int, Any] = {}
        for batch in batches:
            answers |= {id(batch[at]): (one.ids, one.text) for at, one in model.generate(batch)}
        found.append(answers)
        logits.append(dict(seen))
        seen.clear()
    assert steps and found[0] == found[1] == found[2] and logits[0] == logits[1] == logits[2]


def test_losses_and_option_scores_have_the_same_bits(tiny_model: Model) -> None:
    model = made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer)
    windows = torch.randint(1, 500, (5, 90), generator=torch.Generator().manual_seed(1))
    assert model.scoring_rows(90, given=4) == 1
    together = model.token_nll(windows, first=30)
    alone = [model.token_nll(row, first=30)[0] for row in windows.split(1)]
    assert all(map(torch.equal, together, alone))
    shared = windows[0, :60].tolist()
    options = [[*shared, *range(first, first + count)] for first, count in ((3, 2), (40, 9), (80, 30))]
    assert model.option_scores(options, 60) == [model.option_scores([ids], 60)[0] for ids in options]


@pytest.fixture(scope="module")
def invariant(tiny_folder: Path) -> Model:
    return e2bench.load(tiny_folder, batch_invariant=True)


RUNS: dict[str, dict[str, Any]] = {
    "longbench": {"data": "demo", "tasks": "trec,samsum,lcc", "limit": 2, "window": 320, "scale": 4},
    "passkey": {"lengths": "256,384", "depths": 3, "trials": 2, "scale": "auto"},
    "ruler": {"lengths": "1k", "tasks": "vt,cwe", "samples": 3, "scale": 4},
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_any_batch_size_leave_the_same_lines(name: str, invariant: Model, tmp_path: Path) -> None:
    lines = {}
    for size in (1, 4, 16, "auto"):
        run = e2bench.run(name, invariant, out=tmp_path / str(size), batch_size=size, **RUNS[name])
        lines[size] = lines_of(run.folder)
        said = run.settings["resolved"]["batch_invariant"]
        assert said == run.settings["model"]["batch_invariant"] == f"steps of 8 rows, {torch.get_num_threads()} threads"
    assert sum(map(len, lines[1].values())) >= 5
    assert lines[4] == lines[16] == lines["auto"] == lines[1]


def test_perplexity_is_the_same_beside_other_lengths(invariant: Model, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(
        "The grass is green. The sky is blue. Anna keeps 12 violins in the old house. " * 16
    )
    how = {"data": tmp_path / "text.txt", "stride": 32, "scale": 4, "doc_tokens": "all"}
    both = e2bench.run("ppl", invariant, out=tmp_path / "both", lengths="100,250", **how)
    one = e2bench.run("ppl", invariant, out=tmp_path / "one", lengths="100", batch_size=1, **how)
    keep = ("nll_sum", "scored_tokens", "windows")
    of_100 = [[line[k] for k in keep] for line in lines_of(both.folder)["ppl.jsonl"] if line["window"] == 100]
    assert of_100[0][2] >= 5  # windows
    assert of_100 == [[line[k] for k in keep] for line in lines_of(one.folder)["ppl.jsonl"]]


@pytest.mark.slow
def test_two_processes_leave_the_lines_of_one(tiny_folder: Path, tmp_path: Path) -> None:
    shared = ["longbench", "--model", str(tiny_folder), "--data", "demo", "--tasks", "trec,samsum", "--batch-invariant"]
    shared += ["--window", "320", "--scale", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher, size, out in (([], "8", "one"), (torchrun, "3", "two")):
        line = [sys.executable, *launcher, "-m", "e2bench", *shared, "--batch-size", size, "--out", str(tmp_path / out)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "one")
    assert read_json(tmp_path / "two" / "scores.json") == read_json(tmp_path / "one" / "scores.json")


def test_a_run_goes_on_with_the_option_and_as_many_threads_only(
    invariant: Model, tiny_folder: Path, tmp_path: Path
) -> None:
    how = {"out": tmp_path / "run", **RUNS["passkey"], "trials": 1}
    e2bench.run("passkey", invariant, **how)
    with pytest.raises(E2BenchError, match=r"batch_invariant = steps of 8 rows.*OMP_NUM_THREADS"):
        e2bench.run("passkey", tiny_folder, **how)
    with threads(torch.get_num_threads() + 1), pytest.raises(E2BenchError, match="OMP_NUM_THREADS"):
        e2bench.run("passkey", invariant, **how)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--attn", "flex_attention"], "--attn flex_attention"),
        (["--device-map", "auto"], "--device-map"),
        (["--compile"], "--compile"),
        (["--engine", "vllm", "--engine-command", sys.executable], "is not for --engine vllm"),
        (["--model", "http://127.0.0.1:9/v1", "--tokenizer", "x"], "is not for http://127.0.0.1:9/v1"),
    ],
)
def test_what_it_cannot_promise_is_refused_in_one_line(
    options: list[str], said: str, cli: Callable[..., Any], tmp_path: Path
) -> None:
    ended = cli("passkey", "--batch-invariant", *options, "--out", tmp_path / "run")
    assert ended.code == 2 and ended.err.count("\n") == 1, ended
    assert "--batch-invariant" in ended.err and said in ended.err


def test_it_is_refused_for_models_at_hand_that_were_loaded_without(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(E2BenchError, match="loaded with it, which tiny-llama is not"):
        e2bench.run("passkey", tiny_model, out=tmp_path / "run", batch_invariant=True, **RUNS["passkey"])


def test_experts_are_refused_and_so_is_a_model_whose_rows_are_not_alone(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = MixtralConfig(**SIZES | {"intermediate_size": 256}, num_local_experts=4)
    with pytest.raises(ModelError, match=r"experts.*--batch-size 1"):
        made(experts, torch.float32, tiny_model.tokenizer)
    plain = LlamaRMSNorm.forward

    def of_all_rows(norm: LlamaRMSNorm, states: torch.Tensor) -> torch.Tensor:
        return plain(norm, states) + states.mean() * 1e-6

    monkeypatch.setattr(LlamaRMSNorm, "forward", of_all_rows)
    with pytest.raises(ModelError, match="other bits beside other prompts"):
        made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer)
