"""The paper's argument in miniature, from nothing: `python -m e2bench.train.reproduce`, or `make reproduce`.

Data, models, measurements, report: every step is a command of minutes, is skipped when its result is there, and goes on
where it was interrupted. Arguments are names of steps (default: all); `--list` prints them with their state.
Weights go to `results/train/`, measurements to `results/tiny/`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from e2bench.errors import E2BenchError, RunFailed, UnknownName

WEIGHTS, RESULTS = Path("results/train"), Path("results/tiny")
DATA = WEIGHTS / "tiny-data"
TOKENIZER = DATA / "tokenizer"
VOCAB_SIZE = 2048
RETRIEVAL = (  # longest sample, tokens in all
    (128, 1_500_000),
    (512, 8_000_000),
    (1024, 2_000_000),  # E²; from here on also PI at its own windows
    (2048, 2_000_000),
    (4096, 2_000_000),
)
BASE = WEIGHTS / "tiny-base"  # what every tuning starts from
E2 = WEIGHTS / "tiny-e2"  # the E² run that is embedded
EMBEDDED = WEIGHTS / "tiny-embedded"  # says that the package holds this run's model
NATIVE = 512  # L
LENGTHS = "512..8k"  # L … 16 L
SAME_TEXT = ("--min-tokens", "8k", "--doc-tokens", "8192")  # as the runs over all LENGTHS score it
WORDS = ("--template", "e2bench")  # of pass keys: those of the training
SEEDS = (2, 3, 4)


@dataclass(frozen=True)
class Step:
    """run: does the work.    done: the file that is there afterwards, written last."""

    name: str
    run: Callable[[], None]
    done: Path


@dataclass(frozen=True)
class Variant:
    """A rival or an ablation: what it changes in `tiny-ablation.yaml`."""

    name: str
    overrides: tuple[str, ...] = ()


def answers(longest: int) -> Path:
    """The file of retrieval samples of at most so many tokens."""
    return DATA / f"answers-{longest}.jsonl"


def _position_interpolation(scale: int) -> Variant:
    """PI trains at the window that it extends to, on retrieval samples of that length; tokens a step stay the same."""
    window = scale * NATIVE
    rows = max(1, 8 // scale)
    return Variant(
        f"pi-{scale}",
        (
            "method=pi",
            f"scale={scale}",
            f"train_window={window}",
            f"batch_size={rows}",
            f"micro_batch={rows}",
            f"data.1.files=[{answers(window)}]",
        ),
    )


VARIANTS = (
    Variant("e2-short"),
    Variant("no-offset", ("offset=false",)),
    Variant("no-scale", ("scale=2", "train_window=1024", "batch_size=4", "micro_batch=4")),  # R = 2 L, so t_max = 0
    Variant("gmax-5", ("g_max=5",)),
    Variant("gmax-10", ("g_max=10",)),
    Variant("gmax-30", ("g_max=30",)),
    *(_position_interpolation(scale) for scale in (2, 4, 8)),
    Variant("pose-8", ("method=pose", "scale=8")),
    Variant("none", ("method=none",)),
)


def make_data() -> None:
    """Corpus, tokenizer and retrieval samples."""
    from e2bench.data.stdlib import write_corpus
    from e2bench.train.miniature.retrieval import retrieval_sample, write_retrieval
    from e2bench.train.miniature.tokenizer import train_tokenizer

    write_corpus(DATA, seed=0)
    with (DATA / "corpus.jsonl").open(encoding="utf-8") as file:
        texts = (json.loads(line)["text"] for line in file)
        samples = (retrieval_sample(0, index, NATIVE)[1].text for index in range(4000))
        pairs = [f"{n:02d}" for n in range(100)]
        numbers = itertools.repeat(f" {' '.join(pairs)}\n{''.join(pairs)}", 20_000)  # often enough to become tokens
        tokenizer = train_tokenizer(itertools.chain(texts, samples, numbers), VOCAB_SIZE, TOKENIZER)
    for longest, tokens in RETRIEVAL:
        write_retrieval(answers(longest), tokenizer, seed=longest, tokens=tokens, max_tokens=longest)


def embed() -> None:
    """Put the E²-tuned model into the package."""
    from e2bench.train.miniature.embed import embed_model

    embed_model(E2, DATA / "corpus.json", Path("e2bench/assets/tiny"))
    EMBEDDED.touch()


def command(*arguments: str) -> Callable[[], None]:
    """An `e2bench` command in a process of its own, its output shown."""

    def run() -> None:
        status = subprocess.run([sys.executable, "-m", "e2bench", *arguments], check=False).returncode
        if status:
            line = f"e2bench {' '.join(arguments)}"
            raise RunFailed(f"`{line}` ended with status {status}; run this step again to go on")

    return run


def training(recipe: str, folder: Path, *overrides: str) -> Step:
    """Train `recipe` into `folder`."""
    name = f"train-{folder.name.removeprefix('tiny-')}"
    return Step(name, command("train", recipe, *overrides, "--out", str(folder)), folder / "e2_config.json")


def measuring(experiment: str, name: str, model: Path, *options: str) -> Step:
    """Run `experiment` on a model into `results/tiny/EXPERIMENT-NAME`."""
    out = RESULTS / f"{experiment}-{name}"
    data = ("--data", str(DATA / "held_out.jsonl")) if experiment == "ppl" else ()
    options = ("--model", str(model), "--dtype", "float32", *data, *options, "--out", str(out))
    return Step(f"{experiment}-{name}", command(experiment, *options), out / "scores.json")


def main_results() -> Iterator[Step]:
    """Table 3, Figures 5, 6 and 7, passkey grids, extrapolation at scale 1: base and E², one set of weights each."""
    base, e2 = BASE, E2
    yield measuring("ppl", "base", base, "--lengths", LENGTHS, "--extrapolate")
    for method in ("linear", "ntk", "yarn"):
        yield measuring("ppl", f"base-{method}", base, "--lengths", LENGTHS, "--method", method, "--scale", "auto")
    yield measuring("ppl", "e2", e2, "--lengths", LENGTHS, "--scale", "auto")
    yield measuring("ppl", "e2-scales", e2, "--lengths", LENGTHS, "--scale", "1,4,8,16")
    yield measuring("ppl", "e2-extrapolate", e2, "--lengths", LENGTHS, "--extrapolate")
    yield measuring("ppl", "e2-beyond", e2, "--lengths", "512,2k,8k", "--scale", "20,30,40,50")
    for name, model, scale in (
        ("base", base, "1"), ("base-linear", base, "auto"), ("e2", e2, "auto"), ("e2-16", e2, "16"),
    ):  # fmt: skip
        yield measuring("passkey", name, model, "--lengths", LENGTHS, "--scale", scale, *WORDS)
    maps = ("--lengths", "1k,2k,4k", "--depth", "0.5", "--trials", "3", "--keys", "short")
    yield measuring("attention", "e2", e2, *maps, "--scale", "auto")


def steps_of_training() -> Iterator[Step]:
    """Figure 4: perplexity and passkey at 8 L after every 200 steps of the E² run; the last are `main_results`'."""
    for step in range(200, 1000, 200):
        checkpoint = E2 / f"checkpoint-{step}"
        yield measuring("ppl", f"e2-step-{step}", checkpoint, "--lengths", "4k", "--scale", "8", *SAME_TEXT)
        yield measuring("passkey", f"e2-step-{step}", checkpoint, "--lengths", "4k", "--scale", "8", *WORDS)


def variants() -> Iterator[Step]:
    """Tables 4 and 5 and the rivals, three seeds: trained, measured at 8 L (and with a fixed g at g·L)."""
    for seed, variant in itertools.product(SEEDS, VARIANTS):
        name = f"{variant.name}-seed-{seed}"
        folder = WEIGHTS / f"tiny-{name}"
        yield training("tiny-ablation", folder, *variant.overrides, f"seed={seed}")
        fixed = next((int(o.removeprefix("scale=")) for o in variant.overrides if o.startswith("scale=")), 8)
        lengths = sorted({fixed * NATIVE, 8 * NATIVE})
        shared = ("--lengths", ",".join(map(str, lengths)), "--scale", "auto")
        yield measuring("ppl", name, folder, *shared, *SAME_TEXT)
        yield measuring("passkey", name, folder, *shared, *WORDS)


def all_steps() -> list[Step]:
    """Every step, in order."""
    return [
        Step("data", make_data, answers(RETRIEVAL[-1][0])),
        training("tiny-copy", WEIGHTS / "tiny-copy"),
        training("tiny-base", BASE),
        training("tiny-e2", E2),
        Step("embed", embed, EMBEDDED),
        *main_results(),
        *steps_of_training(),
        Step("profile", command("train", "tiny-ablation", "--profile", "--out", str(RESULTS / "profile")),
             RESULTS / "profile" / "profile.json"),
        *variants(),
        Step("report", command("report", str(RESULTS), "--out", str(RESULTS / "report")),
             RESULTS / "report" / "index.html"),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run the steps named, or all that are not done."""
    parser = argparse.ArgumentParser(prog="python -m e2bench.train.reproduce", description=__doc__)
    parser.add_argument("steps", nargs="*", help="names of steps; default: all")
    parser.add_argument("--list", action="store_true", help="print the steps and whether they are done")
    options = parser.parse_args(arguments)
    try:
        run_steps(options.steps, only_list=options.list)
    except E2BenchError as error:
        print(f"reproduce: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run_steps(names: list[str], *, only_list: bool = False) -> None:
    """Run the steps of these names, or all, that are not done; or print them with their state."""
    steps = {step.name: step for step in all_steps()}
    for name in names:
        if name not in steps:
            raise UnknownName("step", name, list(steps))
    console = Console()
    for step in steps.values():
        if only_list:
            console.print(f"{'done' if step.done.exists() else '    '}  {step.name}")
        elif (not names or step.name in names) and not step.done.exists():
            console.rule(step.name)
            step.run()


if __name__ == "__main__":
    main()
