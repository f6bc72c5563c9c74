"""Perplexity of the tokens that need the long context, from the losses that a `ppl` run stores with `--token-losses`.

LongPPL (Fang et al., arXiv 2410.23771) is the perplexity of key tokens: those whose log-probability under an evaluator
rises by more than 2 nats from a short context (LSD > 2) and is above -2 with the long one (LCL > -2). Here the
thresholds are the same, and these things differ, so that the number is no LongPPL and never called so:

- The model is its own evaluator (there one strong model for all, so that all are asked for the same tokens).
- The short context is what the run's shortest length sees, at that length's own scale (there the last 4,096 tokens).
- The long context is that of the run's longest length. There the number is below e² by choice of the tokens: it says
  something at the lengths between, and beside it `context_share` (the share of all tokens that a length gains so,
  chosen anew at each length) says something of each length and of two models.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2bench.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Losses = NDArray[np.float32]

UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)
MOST_HEADER_BYTES = 1024  # of an array's file, beside its numbers
GAIN, MOST = 2.0, 2.0  # nats: of LSD, and of the loss that LCL > -2 allows
Line = Mapping[str, Any]
Cell = tuple[int, float]  # window, scale


def losses_name(document: str, window: int, scale: float) -> str:
    """The file of a line's losses."""
    return f"ppl-{document}-{window}-g{scale:g}.npz"


def read_losses(folder: Path, line: Line) -> Losses:
    """(scored_tokens,) float32, nats: the loss of each scored token of a line, in order. Raises DataError."""
    import numpy as np

    path = folder / Path(str(line["losses"])).name  # never outside the run
    count = line["scored_tokens"]
    other = DataError(f"{path} does not hold the {count} losses of its line")
    try:
        with zipfile.ZipFile(path) as stored:  # a small file can unpack to terabytes
            if stored.getinfo("nll.npy").file_size > 4 * count + MOST_HEADER_BYTES:
                raise other
            with stored.open("nll.npy") as array:
                found: Losses = np.lib.format.read_array(array, allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:120]}") from None
    if found.shape != (count,) or found.dtype != np.float32 or not np.isfinite(found).all():
        raise other
    return found


def gained(short: Losses, long: Losses) -> NDArray[np.bool_]:
    """Which tokens need the longer context: their loss falls by more than 2 nats, to below 2."""
    return (short - long > GAIN) & (long < MOST)


def context_scores(folder: Path, lines: Sequence[Line]) -> dict[Cell, dict[str, Any]]:
    """Fields of each (window, scale) of scores.json; {} without stored losses, or with one length.

    Raises DataError for files that are missing or others.
    """
    import numpy as np

    cells = sorted({(line["window"], line["scale"]) for line in lines})
    if not cells or cells[0][0] == cells[-1][0] or not all(line.get("losses") for line in lines):
        return {}
    first, last = cells[0], min(cell for cell in cells if cell[0] == cells[-1][0])
    sums: dict[Cell, list[tuple[float, int, int, int]]] = {cell: [] for cell in cells}
    documents: dict[str, dict[Cell, Line]] = {}
    for line in lines:
        documents.setdefault(line["document"], {})[line["window"], line["scale"]] = line
    for found in documents.values():
        if first in found and last in found:  # else the run is not complete
            losses = {cell: read_losses(folder, line) for cell, line in found.items()}
            short = losses[first]
            if len({len(own) for own in losses.values()}) > 1:
                raise DataError(f"{folder}: document {found[first]['document']} has other tokens scored at some length")
            chosen = gained(short, losses[last])
            for cell, own in losses.items():
                nats = float(own[chosen].sum(dtype=np.float64))
                sums[cell].append((nats, int(chosen.sum()), int(gained(short, own).sum()), len(own)))
    return {cell: _scored(np.array(rows, dtype=np.float64).reshape(-1, 4)) for cell, rows in sums.items()}


def _scored(rows: NDArray[np.float64]) -> dict[str, Any]:
    """rows: a document each: nats and number of the chosen tokens, tokens gained, tokens scored."""
    from e2bench.scoring.statistics import perplexity_of, ratio_interval

    nats, chosen, won, scored = rows.T
    tokens = int(chosen.sum())
    is_there = chosen > 0
    bounds = ratio_interval(nats[is_there], chosen[is_there])
    return {
        "context_perplexity": perplexity_of(nats.sum() / tokens) if tokens else None,
        "context_interval": bounds and [perplexity_of(bound) for bound in bounds],
        "context_tokens": tokens,
        "context_share": float(won.sum() / scored.sum()) if len(rows) else None,
    }
