"""`e2bench ppl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2bench.commands.grid import grid_of, run_grid
from e2bench.corpus import choose_documents, corpus_source, open_corpus
from e2bench.errors import E2BenchError, UnknownName
from e2bench.options import Common
from e2bench.provenance import DEMO
from e2bench.rope import RopeScaling
from e2bench.scales import ScaleRule, parse_length, parse_lengths, scale_rule, short_length
from e2bench.session import (
    batch_size,
    check_model,
    check_scale,
    given,
    load_model,
    rule_for,
    say,
)

DEMO_DOCS, DEMO_WINDOWS = 2, 2  # 4k..64k in minutes on two cores; every window of two documents would take hours


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
    model: Any = None,
) -> Path | None:
    """Measure sliding-window perplexity at every length and scale. Returns the run's folder, on rank 0.

    model: a loaded one; None: the one that `common` names.
    """
    own = {name: value for name, value in locals().items() if name not in ("common", "model")}
    windows = parse_lengths(lengths)
    check_scale(common, lists=True)

    if model is None:
        check_model(common)

    from e2bench.perplexity import PROTOCOLS, Protocol, cells_of, measure

    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, list(PROTOCOLS))
    if not 1 <= stride < windows[0]:
        raise E2BenchError(f"stride {stride} does not fit the shortest length {windows[0]}; it must lie below it")
    if max_windows is not None and max_windows < 1:
        raise E2BenchError(f"--max-windows {max_windows} is not possible; it must be at least 1")
    used = None if doc_tokens == "all" else windows[-1] if doc_tokens == "longest" else parse_length(doc_tokens)
    least = parse_length(min_tokens) if min_tokens else windows[-1]

    source = corpus_source(data)
    corpus = open_corpus(data, source)
    if source.kind == DEMO:
        docs, max_windows = docs or DEMO_DOCS, max_windows or DEMO_WINDOWS
        _say_demo(docs, max_windows, stride, given=data is not None)
    model = load_model(common) if model is None else model
    rule = _extrapolation(common, model.native_window, model.own_scaling) if extrapolate else rule_for(common, model)
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
        f"documents: {len(chosen)}, lengths and scales: {len(grid)}, windows: {sum(len(c.windows) for c in cells):,}, "
        f"{tokens:,} tokens to read; {model.needed_bytes(windows[-1]) / 2**30:.2f} GiB beside the weights"
    )
    if dry_run:
        _print_plan(grid, cells)
        return None

    from e2bench.model import require_memory

    require_memory(model, windows[-1])
    return run_grid(
        "ppl",
        common,
        model,
        rule,
        grid,
        lambda folder, processes: measure(model, cells, rules, folder, processes, batch_size(common)),
        settings=given(common, **own),
        resolved={
            "lengths": windows,
            "protocol": protocol,
            "stride": stride,
            "bos": bos,
            "documents": [c.document.id for c in chosen],
            "doc_tokens": used or "all",
            "max_windows": max_windows,
        },
        data={c.document.where.rsplit("/", 1)[-1]: c.document.id for c in chosen},
        source=source,
        chooses={"lengths": False, "documents": False, "data": False},  # a line's document is a hash of its text
        advice={"doc_tokens": "fix the documents with --doc-tokens and --min-tokens to add lengths to a run"},
        extrapolate=extrapolate,
    )


def _say_demo(docs: int, max_windows: int, stride: int, *, given: bool) -> None:
    """The demo documents show what a window is worth in minutes, not in the hours of the whole protocol."""
    say(
        f"{'--data demo' if given else 'no --data given'}: {docs} demo documents (the installed Python's own source "
        f"files), of each the last {max_windows} windows a length (stride {stride}); "
        "--data FILE, --docs and --max-windows for more"
    )


def _extrapolation(common: Common, native: int, own: RopeScaling | None) -> ScaleRule:
    """Scale 1 at every length: does the window grow by itself?"""
    if common.scale not in (None, "1"):
        raise E2BenchError(f"--extrapolate reads every length at scale 1; leave --scale {common.scale} out")
    return scale_rule("1", common.method, native, own)


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
