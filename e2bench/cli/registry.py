"""The commands by name. Each is made when it is asked for: the options of all of them together take 0.1 s."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

from e2bench.cli.help import Command, columns
from e2bench.cli.options import with_settings
from e2bench.experiments.options import Common

Function = Callable[..., None]


@dataclass(frozen=True)
class Offer:
    """A command that is not made yet.

    about: the sentence that the list of commands shows.    function: what typer reads its options from.
    examples: the lines that its help ends with.
    """

    about: Callable[[], str]
    function: Callable[[], Function]
    examples: Callable[[], tuple[str, ...]]


class Commands(Mapping[str, Any]):
    """Name: command, in the order of the list that `--help` shows."""

    def __init__(self) -> None:
        self.offers: dict[str, Offer] = {}

    def __getitem__(self, name: str) -> Any:
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        alone.command(name, cls=Command)(self.offers[name].function())
        made = typer.main.get_command(alone)
        made.examples = self.offers[name].examples()  # type: ignore[attr-defined]
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.offers)

    def __len__(self) -> int:
        return len(self.offers)

    def command(self, *examples: str, shared: Collection[str] = ()) -> Callable[[Function], Function]:
        """Offer a function under its own name. shared: the shared options it takes, as one argument `common`."""

        def offer(function: Function) -> Function:
            self.offers[function.__name__.replace("_", "-")] = Offer(
                about=lambda: " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split()),
                function=lambda: with_settings(function, [Common], shared) if shared else function,
                examples=lambda: examples,
            )
            return function

        return offer


COMMANDS = Commands()


class Group(TyperGroup):
    """All commands, in whole sentences."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = COMMANDS  # type: ignore[assignment]  # nothing is added to it

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Every command with the first paragraph of its help, not cut."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, offer.about()) for name, offer in COMMANDS.offers.items()])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Where to begin."""
        with formatter.section("Begin"):
            for line in ("e2bench quickstart", "e2bench COMMAND --help        options and examples of one command"):
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    def get_help(self, ctx: Any) -> str:
        """The help at our width."""
        ctx.terminal_width = columns()
        return str(super().get_help(ctx))
