"""`e2bench ppl`."""

from __future__ import annotations

from e2bench.commands.score import show
from e2bench.corpus import choose_documents, open_corpus
from e2bench.errors import E2BenchError, UnknownName
from e2bench.options import Common
from e2bench.processes import Processes
from e2bench.rope import RopeScaling
from e2bench.scales import ScaleRule, parse_length, parse_lengths, short_length, short_number
from e2bench.session import (
    batch_size,
    check_scale,
    default_corpus,
    default_out,
    finish_run,
    given,
    load_model,
    open_run,
    rule_for,
    say,
)


def run(
    common: Common,
    *,
    lengths: str,
    protocol: str,
    stride: int,
    data: str | None,
    docs: int | None,
    min_tokens: str | None,
    doc_tokens: str,
    max_windows: int | None,
    extrapolate: bool,
    dry_run: bool,
) -> None:
    """Measure sliding-window perplexity at every length and scale."""
    own = {name: value for name, value in locals().items() if name != "common"}
    windows = parse_lengths(lengths)
    check_scale(common, lists=True)

    from e2bench.perplexity import PROTOCOLS, Protocol, cells_of, measure

    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, list(PROTOCOLS))
    if not 1 <= stride < windows[0]:
        raise E2BenchError(f"stride {stride} does not fit the shortest length {windows[0]}; it must lie below it")
    if max_windows is not None and max_windows < 1:
        raise E2BenchError(f"--max-windows {max_windows} is not possible; it must be at least 1")
    used = None if doc_tokens == "all" else windows[-1] if doc_tokens == "longest" else parse_length(doc_tokens)
    least = parse_length(min_tokens) if min_tokens else windows[-1]

    corpus = open_corpus(data) if data else open_corpus(default_corpus())
    model = load_model(common)
    rule = _extrapolation(common, model.native_window) if extrapolate else rule_for(common, model)
    grid = grid_of(windows, rule)
    bos = model.tokenizer.bos_token_id if protocol == "yarn" else None
    rules = Protocol(protocol, stride, bos, max_windows)
    chosen = choose_documents(
        corpus,
        lambda text: model.encode(text, special_tokens=protocol != "yarn"),
        min_tokens=least,
        docs=docs,
        seed=common.seed,
    )
    cells = cells_of(chosen, grid, rules, used)
    tokens = sum(cell.cost for cell in cells)
    say(
        f"{len(chosen)} documents, {len(grid)} lengths and scales, {sum(len(c.windows) for c in cells):,} windows, "
        f"{tokens:,} tokens to read; {model.needed_bytes(windows[-1]) / 2**30:.2f} GiB beside the weights"
    )
    if dry_run:
        _print_plan(grid, cells)
        return

    from e2bench.model import require_memory

    require_memory(model, windows[-1])
    resolved = {
        "lengths": windows,
        "grid": [[window, scaling.method, short_number(scaling.factor)] for window, scaling in grid],
        "protocol": protocol,
        "stride": stride,
        "bos": bos,
        "documents": [c.document.id for c in chosen],
        "doc_tokens": used or "all",
        "max_windows": max_windows,
    }
    scales = [short_number(scaling.factor) for _, scaling in grid]
    processes = Processes.from_environment()
    model.rope.set(grid[0][1], grid[0][0])
    out = common.out or default_out("extrapolate" if extrapolate else "ppl", model, rule)
    with open_run(
        "ppl",
        common,
        model,
        processes,
        settings=given(common, **own),
        resolved=resolved,
        rope={"method": rule.method, "factor": scales[0] if len(set(scales)) == 1 else scales},
        data={c.document.where.rsplit("/", 1)[-1]: c.document.id for c in chosen},
        out=out,
        **({"extrapolate": True} if extrapolate else {}),
    ) as folder:
        model.rope.restore()
        measure(model, cells, rules, folder, processes, batch_size(common))
        scores = finish_run(out, processes)
    if scores is not None:
        show(out, scores)


def _extrapolation(common: Common, native: int) -> ScaleRule:
    """Scale 1 at every length: does the window grow by itself?"""
    if common.scale not in (None, "1"):
        raise E2BenchError(f"--extrapolate reads every length at scale 1; leave --scale {common.scale} out")
    return ScaleRule("fixed", (1.0,), "linear", native)


def grid_of(windows: list[int], rule: ScaleRule) -> list[tuple[int, RopeScaling]]:
    """(window, scaling) of every cell. Of several scales each reads the lengths up to its g·L (Table 3's layout)."""
    if rule.kind != "fixed" or len(rule.values) == 1:
        grid = [(window, rule.scaling(window)) for window in windows]
        beyond = [window for window, scaling in grid if scaling.factor * rule.native < window]
        if beyond and rule.method != "none":
            say(f"scale {grid[0][1].factor:g} covers {_span(grid[0][1].factor, rule)}: beyond it are {_names(beyond)}")
        return grid
    grid, left_out = [], []
    for value in rule.values:
        for window in windows:
            if value * rule.native >= window:
                grid.append((window, rule.scaling(window, value)))
            else:
                left_out.append(f"{short_length(window)} at g = {value:g}")
    if left_out:
        say(f"left out, beyond g·L: {', '.join(left_out)}")
    if not grid:
        raise E2BenchError(f"no length is within g·L of any scale; the largest covers {_span(max(rule.values), rule)}")
    return grid


def _span(factor: float, rule: ScaleRule) -> str:
    return f"{short_length(int(factor * rule.native))} tokens"


def _names(windows: list[int]) -> str:
    return ", ".join(short_length(window) for window in windows)


def _print_plan(grid: list[tuple[int, RopeScaling]], cells: list) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    table = Table(title="ppl --dry-run", title_justify="left")
    for column in ("length", "method", "g", "documents", "windows", "tokens"):
        table.add_column(column, justify="right")
    for window, scaling in grid:
        own = [cell for cell in cells if cell.window == window and cell.scaling == scaling]
        numbers = (len(own), sum(len(c.windows) for c in own), sum(c.cost for c in own))
        table.add_row(short_length(window), scaling.method, f"{scaling.factor:g}", *(f"{n:,}" for n in numbers))
    Console().print(table)
