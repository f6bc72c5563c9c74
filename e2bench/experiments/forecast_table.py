"""A forecast in the terminal."""

from __future__ import annotations

from e2bench.errors import printable
from e2bench.experiments.forecast import SAMPLE, Forecast

UNKNOWN = "?"


def show(name: str, found: Forecast) -> None:
    """Print what a run would cost, a row for every task or length."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{name} --dry-run", title_justify="left")
    for at, column in enumerate(("", "inputs", "done", "tokens")):
        table.add_column(column, justify="right" if at else "left")
    for part in found.parts:
        table.add_row(
            escape(printable(part.name)), f"{part.inputs:,}", f"{part.done:,}", tokens(part.tokens, found.sampled)
        )
    if len(found.parts) > 1:
        table.add_section()
        table.add_row("all", f"{found.inputs:,}", f"{found.done:,}", tokens(found.tokens, found.sampled))
    console = Console()
    console.print(table)
    for line in filter(None, (memory(found), rate(found), *notes([found]))):
        console.print(escape(printable(line)), highlight=False, soft_wrap=True)


def tokens(count: int | None, sampled: bool) -> str:
    """A number of tokens, `~` where it is a mean over a sample."""
    return UNKNOWN if count is None else f"{'~' if sampled else ''}{count:,}"


def hours(value: float | None) -> str:
    """Two digits are all that an estimate has."""
    return UNKNOWN if value is None else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def duration(value: float) -> str:
    """So many hours in the unit that people would use."""
    seconds = 3600 * value
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{60 * value:.0f} min" if value < 2 else f"{hours(value)} hours"


def gib(value: float | None) -> str:
    """GiB, to two decimals below 10."""
    return UNKNOWN if value is None else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def memory(found: Forecast) -> str:
    """The model's weights and its longest input."""
    weights, beside = (None if n is None else n / 2**30 for n in (found.weight_bytes, found.input_bytes))
    longest = UNKNOWN if found.longest is None else f"{found.longest:,}"
    return f"{gib(weights)} GiB of weights, {gib(beside)} GiB for one input of {longest} tokens beside them"


def rate(found: Forecast) -> str:
    """The hours, and where they are from; empty where they are unknown."""
    if found.rate is None or found.hours is None:
        return ""
    return f"{duration(found.hours)}, at the rate of {found.rate.source}"


def notes(several: list[Forecast]) -> list[str]:
    """What `~` and `?` mean in these forecasts, each once."""
    means = f"~ the mean of {SAMPLE} inputs of each task, by the tokenizer"
    sampled = [means] if any(found.sampled for found in several) else []
    reasons = dict.fromkeys(f"{UNKNOWN} {reason}" for f in several for reason in f.unknown)
    return [*sampled, *reasons]
