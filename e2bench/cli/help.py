"""How `--help` looks: whole sentences as wide as the terminal, options in their groups, examples, the next step."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from typer.core import TyperCommand

WIDEST = 110  # of a line people read
UNKNOWN = 100  # columns where there is no terminal
UNBROKEN = "\u2011"  # stands for a hyphen while lines are broken, so that no option's name is
# Examples that a command's help ends with; tests/test_cli_words.py parses all of them.
EXAMPLES = {
    "longbench": (
        "e2bench longbench --data demo --window 2k",
        "e2bench longbench --model meta-llama/Llama-2-7b-hf --scale 8 --tasks trec,lcc --limit 20 --out results/g8",
        "e2bench longbench --model meta-llama/Llama-2-7b-hf --scale 8 --engine vllm --out results/g8-vllm",
    ),
    "longbench2": ("e2bench longbench2 --model meta-llama/Llama-3.1-8B-Instruct --cot --out results/longbench2",),
    "ruler": (
        "e2bench ruler --lengths 1k --samples 1 --tasks niah_single_1,vt",
        "e2bench ruler --model meta-llama/Llama-2-7b-hf --lengths 4k..32k --samples 50 --out results/ruler",
    ),
    "short": ("e2bench short --model meta-llama/Llama-2-7b-hf --suite paper --out results/short",),
    "ppl": (
        "e2bench ppl --lengths 512,1k --max-windows 2",
        "e2bench ppl --model meta-llama/Llama-2-7b-hf --data proof-pile --lengths 4k..64k --method YaRN",
    ),
    "passkey": ("e2bench passkey --lengths 512..4k --depths 5 --trials 2",),
    "needle": ("e2bench needle --lengths 512,1k --depths 3 --trials 1 --data demo",),
    "attention": ("e2bench attention --lengths 512,1k --out results/attention",),
    "score": ("e2bench score results/g8 --json", "e2bench score pred/llama2-7b-chat-4k --out scores"),
    "report": ("e2bench report results --out report", "e2bench report results/mine results/theirs --out report"),
    "view": ("e2bench view results",),
    "results": ("e2bench results results", "e2bench results results --csv"),
    "quickstart": ("e2bench quickstart --out results/quickstart",),
    "suite": ("e2bench suite paper --set model=results/train/llama2-7b --dry-run",),
    "train": ("e2bench train llama2-7b --dry-run", "e2bench train llama2-7b g_max=10 --out results/train/g10"),
    "data": ("e2bench data", "e2bench data longbench"),
    "models": ("e2bench models", "e2bench models --json"),
    "export": ("e2bench export --model meta-llama/Llama-2-7b-hf --scale 16 --out exported",),
    "serve-command": ("e2bench serve-command --model exported --engine sglang",),
    "doctor": ("e2bench doctor --model exported --json",),
    "compare": ("e2bench compare results/g2 results/g4", "e2bench compare results/g2 results/g4 --tasks trec --json"),
    "tasks": ("e2bench tasks", "e2bench tasks --json"),
}


def columns() -> int:
    """The width of help: the terminal's, or one that a page or a pager shows, never too wide to read."""
    width = shutil.get_terminal_size((UNKNOWN, 24)).columns if sys.stdout and sys.stdout.isatty() else UNKNOWN
    return max(60, min(width, WIDEST))


class Command(TyperCommand):
    """Options under the headings of their groups, then examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The command's own options first, then each group of shared ones."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                record = (record[0], record[1].replace("-", UNBROKEN))
                is_argument = parameter.param_type_name == "argument"
                heading = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
                groups.setdefault(heading, []).append(record)
        for heading in sorted(groups, key=lambda name: name != "Arguments"):
            with formatter.section(heading):
                formatter.write_dl(groups[heading], col_max=26)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Examples, one a line, as they are typed."""
        examples = EXAMPLES.get(ctx.info_name or "", ())
        if examples:
            with formatter.section("Examples"):
                for line in examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    def get_help(self, ctx: Any) -> str:
        """The help at our width."""
        ctx.terminal_width = columns()
        return str(super().get_help(ctx)).replace(UNBROKEN, "-")
