"""`--batch-invariant`: the same bits whatever is answered or scored beside an item."""

from __future__ import annotations

import json
import os
import socket
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
from transformers import (
    AutoModelForCausalLM,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import e2bench
from e2bench.errors import E2BenchError, ModelError
from e2bench.experiments.forecast import forecast, outline_of
from e2bench.experiments.options import Common
from e2bench.experiments.passkey import PassKey
from e2bench.experiments.run import check_alike
from e2bench.experiments.sharing import is_worth
from e2bench.files import read_json
from e2bench.models.body import DECODE_ROWS
from e2bench.models.invariant import InvariantModel
from e2bench.models.local import Model
from e2bench.models.protocols import Prompt
from e2bench.models.steps import Row, Steps
from e2bench.runs.processes import Processes

ROWS = DECODE_ROWS["cpu"]
SIZES = {"vocab_size": 512, "hidden_size": 96, "intermediate_size": 250, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "heads of 10": LlamaConfig(**SIZES | {"hidden_size": 60}),  # no row of keys begins at 64 bytes
    "parts of threads": LlamaConfig(**SIZES | {"hidden_size": 48, "intermediate_size": 11008, "num_hidden_layers": 1}),
    "sliding window": MistralConfig(**SIZES, sliding_window=24),
    "experts in name alone": GraniteMoeHybridConfig(
        **SIZES,
        num_local_experts=0,
        shared_intermediate_size=250,
        layer_types=["attention"] * 2,
        position_embedding_type="rope",
        mamba_n_heads=8,
        mamba_d_head=24,
    ),
}
SMALL = SIZES | {"intermediate_size": 256, "num_experts_per_tok": 2}
EXPERTS = [
    MixtralConfig(**SMALL, num_local_experts=4),
    Qwen2MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=64, shared_expert_intermediate_size=64),
    OlmoeConfig(**SMALL, num_experts=4),
    GraniteMoeConfig(**SMALL, num_local_experts=4),
]
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
        ("llama", torch.bfloat16, 1),
        ("heads of 10", torch.float32, 1),
        ("heads of 10", torch.bfloat16, 1),
        ("parts of threads", torch.float32, 2),
        ("parts of threads", torch.float32, 3),
        ("sliding window", torch.float32, 1),
        ("experts in name alone", torch.float32, 1),
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


def test_losses_have_the_same_bits(tiny_model: Model) -> None:
    model = made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer)
    windows = torch.randint(1, 500, (5, 90), generator=torch.Generator().manual_seed(1))
    assert model.scoring_rows(90, given=4) == 1
    together = model.token_nll(windows, first=30)
    alone = [model.token_nll(row, first=30)[0] for row in windows.split(1)]
    assert all(map(torch.equal, together, alone))


def test_option_scores_have_the_same_bits_in_any_order_and_read_what_options_share_once(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer)
    questions = []
    for at, shared in enumerate((60, 7, 133, 250)):
        head = torch.randint(1, 500, (shared,), generator=torch.Generator().manual_seed(at)).tolist()
        questions.append([[*head, *range(first, first + count)] for first, count in ((3, 2), (40, 9), (80, 30))])
    fed: list[int] = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, *where: (fed.append(ids.shape[1]), hidden(ids, *where))[1])
    scores = [model.option_scores(options) for options in questions]
    assert fed[:4] == [60, 2, 9, 30]
    for order in ((3, 2, 1, 0), (1, 3, 0, 2)):
        list(model.generate(prompts_of(5)))
        assert {at: model.option_scores(questions[at]) for at in order} == dict(enumerate(scores))


@pytest.fixture(scope="module")
def invariant(tiny_folder: Path) -> Model:
    return e2bench.load(tiny_folder, batch_invariant=True)


RUNS: dict[str, dict[str, Any]] = {
    "longbench": {"data": "demo", "tasks": "trec,samsum,lcc", "limit": 2, "window": 320, "scale": 4},
    "passkey": {"lengths": "256,384", "depths": 3, "trials": 2, "scale": "auto"},
    "ruler": {"lengths": "1k", "tasks": "vt,cwe", "samples": 3, "scale": 4},
    "short": {"tasks": "piqa,naturalquestions", "scale": 4},  # options ranked, and answers
}


def write_short(folder: Path) -> None:
    """Rows with options, and questions to answer."""
    goals = ("open a jar", "dry wet shoes", "find a lost key in the green grass", "sing")
    options = {"sol1": "turn the lid", "sol2": "wait until it rains and the sun is yellow", "label": 0}
    for name, rows in (
        ("piqa", [{"goal": goal, **options} for goal in goals]),
        ("nq_open", [{"question": f"how do you {goal}", "answer": ["so"]} for goal in goals]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_any_batch_size_leave_the_same_lines(
    name: str, invariant: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "short":
        write_short(tmp_path)
        monkeypatch.setitem(RUNS[name], "data", tmp_path)
    lines = {}
    for size in (1, 4, 16, "auto"):
        run = e2bench.run(name, invariant, out=tmp_path / str(size), batch_size=size, **RUNS[name])
        lines[size] = lines_of(run.folder)
        for part in ("resolved", "model"):
            said = run.settings[part]
            assert (said["batch_invariant"], said["threads"]) == ("steps of 8 rows", torch.get_num_threads())
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
    with pytest.raises(E2BenchError, match=r"batch_invariant = steps of 8 rows, not none .*go on with --batch-inv"):
        e2bench.run("passkey", tiny_folder, **how)
    now = torch.get_num_threads()
    said = rf"holds a run with threads = {now}, not {now + 1}; .*give OMP_NUM_THREADS as before"
    with threads(now + 1), pytest.raises(E2BenchError, match=said):
        e2bench.run("passkey", invariant, **how)


def test_processes_with_other_threads_are_refused_by_name() -> None:
    """Two ranks of one store, each with its own settings."""
    store = torch.distributed.HashStore()
    resolved = {"batch_invariant": "steps of 8 rows", "threads": 1}
    check_alike(resolved, Processes(0, 3, store))
    check_alike(dict(resolved), Processes(1, 3, store))
    with pytest.raises(E2BenchError, match=r"^process 2 of 3 has threads = 4, process 0 1; start all of them alike"):
        check_alike({**resolved, "threads": 4}, Processes(2, 3, store))
    check_alike({"threads": 4}, Processes())  # alone


@pytest.mark.slow
def test_a_second_process_with_other_threads_ends_before_it_writes(tiny_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "e2bench", "passkey", "--model", str(tiny_folder), "--lengths", "256"]
    line += ["--depths", "2", "--trials", "1", "--batch-invariant", "--device", "cpu", "--out", str(tmp_path / "run")]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = [{**shared, "RANK": str(rank), "OMP_NUM_THREADS": str(rank + 1)} for rank in range(2)]
    first = subprocess.Popen(line, env=environments[0], stderr=subprocess.DEVNULL)
    try:
        second = subprocess.run(line, env=environments[1], capture_output=True, text=True, timeout=120, check=False)
    finally:
        first.kill()
        first.wait()
    said = second.stderr
    assert second.returncode == 2 and "process 1 of 2 has threads = 2, process 0 1" in said, said
    assert not [path for path in (tmp_path / "run").glob("*.jsonl") if path.read_bytes()]


def test_two_runs_of_other_threads_can_be_compared(invariant: Model, tmp_path: Path) -> None:
    """They were asked the same: their models differ, in the last bits."""
    for count in (1, 2):
        with threads(count):
            e2bench.run("passkey", invariant, out=tmp_path / str(count), lengths=256, depths=1, trials=1)
    assert e2bench.compare(tmp_path / "1", tmp_path / "2")["tasks"]


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


def test_lm_eval_refuses_it_also_for_a_model_at_hand(invariant: Model, tmp_path: Path) -> None:
    write_short(tmp_path)
    with pytest.raises(E2BenchError, match="--batch-invariant is not for --suite lm-eval"):
        e2bench.run("short", invariant, suite="lm-eval", data=tmp_path, tasks="piqa", out=tmp_path / "run")


def test_a_forecast_takes_its_rate_from_a_run_with_the_option(invariant: Model, tmp_path: Path) -> None:
    e2bench.run("passkey", invariant, out=tmp_path / "run", **RUNS["passkey"])
    experiment, wanted = PassKey.read({"lengths": "512"}), {"out": str(tmp_path / "next")}
    for given, known in (({"batch_invariant": True}, True), ({}, False)):
        common = Common.read({**wanted, "model": invariant.path, **given})
        assert (forecast(experiment, common, outline_of(common, experiment)).rate is not None) == known


def test_it_is_refused_for_models_at_hand_that_were_loaded_without(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(E2BenchError, match="loaded with it, which tiny-llama is not"):
        e2bench.run("passkey", tiny_model, out=tmp_path / "run", batch_invariant=True, **RUNS["passkey"])


def test_experts_are_refused_and_so_is_a_model_whose_rows_are_not_alone(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for experts in EXPERTS:
        with pytest.raises(ModelError, match=r"experts.*--batch-size 1"):
            made(experts, torch.float32, tiny_model.tokenizer)
    plain = LlamaRMSNorm.forward

    def of_all_rows(norm: LlamaRMSNorm, states: torch.Tensor) -> torch.Tensor:
        return plain(norm, states) + states.mean() * 1e-6

    monkeypatch.setattr(LlamaRMSNorm, "forward", of_all_rows)
    with pytest.raises(ModelError, match="other bits beside other prompts"):
        made(CONFIGS["llama"], torch.float32, tiny_model.tokenizer)
