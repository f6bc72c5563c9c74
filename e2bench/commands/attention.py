"""`e2bench attention`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.commands.grid import grid_of, run_grid
from e2bench.corpus import Document, corpus_source, open_corpus
from e2bench.errors import DataError, E2BenchError, UnknownName
from e2bench.options import Common
from e2bench.scales import parse_lengths, short_length
from e2bench.session import (
    check_model,
    check_scale,
    given,
    load_model,
    rule_for,
    say,
)

if TYPE_CHECKING:
    from e2bench.model import Model


def run(
    common: Common,
    *,
    lengths: str,
    data: str | None,
    depth: str,
    trials: int,
    keys: str,
    scattered: bool,
    layers: str,
    heads: str,
    reduction: str,
    keep_heads: bool,
    model: Any = None,
) -> Path | None:
    """Hide key-value pairs in a long text, ask for one, record what the answer's tokens attend to.

    Returns the run's folder, on rank 0.    model: a loaded one; None: the one that `common` names.
    """
    own = {name: value for name, value in locals().items() if name not in ("common", "model")}
    sizes = parse_lengths(lengths)
    places = parse_depths(depth)
    check_scale(common)
    if model is None:
        check_model(common)

    from e2bench.attention import REDUCTIONS, STYLES, View, make_cell, measure
    from e2bench.model import require_memory

    for kind, name, known in (("key style", keys, STYLES), ("reduction", reduction, REDUCTIONS)):
        if name not in known:
            raise UnknownName(kind, name, list(known))
    parse_indices(layers, "layer", None), parse_indices(heads, "head", None)

    source = corpus_source(data)
    corpus = open_corpus(data, source)
    if data is None:
        say("no --data given: the text is the demo documents (the installed Python's own source files)")
    model = load_model(common) if model is None else model
    view = View(
        parse_indices(layers, "layer", model.layers),
        parse_indices(heads, "head", int(model.config.num_attention_heads)),
        reduction,
        keep_heads,
    )
    require_memory(model, sizes[-1])
    rule = rule_for(common, model)
    grid = grid_of(sizes, rule)
    texts = long_texts(corpus, model, sizes[-1], trials)
    cells = [
        make_cell(
            model,
            *texts[trial % len(texts)],
            length=length,
            depth=place,
            trial=trial,
            scaling=scaling,
            seed=common.seed,
            style=keys,
            scattered=scattered,
        )
        for length, scaling in grid
        for place in places
        for trial in range(trials)
    ]
    return run_grid(
        "attention",
        common,
        model,
        rule,
        grid,
        lambda folder, processes: measure(model, cells, view, folder, processes),
        settings=given(common, **own),
        resolved={
            "depths": places,
            "trials": trials,
            "seed": common.seed,
            "keys": keys,
            "scattered": scattered,
            "layers": view.layers and list(view.layers),
            "heads": view.heads and list(view.heads),
            "reduction": reduction,
            "keep_heads": keep_heads,
            "chat_template": "none",
        },
        data={"documents": ",".join(dict.fromkeys(name for name, _ in texts))},
        source=source,
        chooses={"depths": False, "trials": False},
    )


def parse_depths(text: str) -> list[float]:
    """Places of the asked value in the text: numbers from 0 (start) to 1 (end), separated by commas."""
    try:
        places = [float(part) for part in text.split(",")]
    except ValueError:
        places = [-1.0]
    if not all(0 <= place <= 1 for place in places) or len(set(places)) < len(places):
        raise E2BenchError(f"depth {text!r} is not possible; give different numbers from 0 (start) to 1 (end)")
    return places


def parse_indices(text: str, kind: str, count: int | None) -> tuple[int, ...] | None:
    """Layers or heads of `all`, `3`, `0,4` or `8..11`, counted from 0; None for all.

    count: how many the model has; None checks the form alone. Raises UnknownName for one that it does not have.
    """
    if text == "all":
        return None
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("..")
        if not first.isdigit() or not (last or first).isdigit():
            raise E2BenchError(f"{kind} {part!r} is not a number; give all, 3, 0,4 or 8..11")
        chosen += range(int(first), int(last or first) + 1)
    for index in chosen:
        if count is not None and index >= count:
            raise UnknownName(kind, str(index), [], hint=f"the model has {kind}s 0 … {count - 1}")
    if not chosen:
        raise E2BenchError(f"{kind}s {text!r} run backwards; write the smaller number first")
    return tuple(sorted(set(chosen)))


def long_texts(
    documents: Iterator[Document], model: Model, tokens: int, wanted: int
) -> Sequence[tuple[str, list[int]]]:
    """(id, token ids with BOS) of the first `wanted` documents of at least `tokens` tokens.

    Fewer will do, each then serves several trials. Raises DataError where none is long enough.
    """
    found: dict[str, list[int]] = {}
    longest = seen = 0
    for document in documents:
        seen += 1
        # Nothing behind this many characters is used; tokenizing all of a long document would take minutes.
        ids = model.encode(document.text[: tokens * 16])
        longest = max(longest, len(ids))
        if len(ids) >= tokens:
            found[document.id] = ids[:tokens]
        if len(found) >= wanted:
            break
    if not found:
        raise DataError(
            f"the longest of {seen} texts has {longest:,} tokens, {short_length(tokens)} are needed; "
            "give a longer one with --data, or shorter --lengths"
        )
    return list(found.items())
