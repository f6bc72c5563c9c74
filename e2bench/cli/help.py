"""How `--help` looks: whole sentences as wide as the terminal, options in their groups, examples, the next step."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from typer.core import TyperCommand

WIDEST = 110  # of a line people read
UNKNOWN = 100  # columns where there is no terminal
UNBROKEN = "\u2011"  # stands for a hyphen while lines are broken, so that no option's name is


def columns() -> int:
    """The width of help: the terminal's, or one that a page or a pager shows, never too wide to read."""
    is_known = "COLUMNS" in os.environ or (sys.stdout and sys.stdout.isatty())
    width = shutil.get_terminal_size((UNKNOWN, 24)).columns if is_known else UNKNOWN
    return max(60, min(width, WIDEST))


class Command(TyperCommand):
    """Options under the headings of their groups, then examples."""

    examples: tuple[str, ...] = ()

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
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    def get_help(self, ctx: Any) -> str:
        """The help at our width."""
        ctx.terminal_width = columns()
        return str(super().get_help(ctx)).replace(UNBROKEN, "-")
