"""`e2bench models`."""

from __future__ import annotations

import json
from dataclasses import asdict

from e2bench.rope.windows import short_length
from e2bench.tasks.models import PRESETS, Preset
from e2bench.terminal import say_next


def run(*, as_json: bool) -> None:
    """Print the presets."""
    if as_json:
        print(json.dumps([asdict(preset) for preset in PRESETS], ensure_ascii=False, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="presets: --model NAME", title_justify="left")
    for column in ("name", "tables", "L", "g", "window", "input limit", "chat"):
        right = column in ("L", "g", "window", "input limit")
        table.add_column(column, justify="right" if right else "left", no_wrap=column == "name")
    for preset in PRESETS:
        table.add_row(*_cells(preset))
    console = Console()
    console.print(table)
    console.print("never published: train RECIPE stands for `e2bench train RECIPE --out FOLDER`, then --model FOLDER")
    console.print("pickle: the hub has no safetensors of it: give --allow-pickle")
    for preset in PRESETS:
        text = ". ".join(filter(None, (_where(preset), preset.note)))
        console.print(f"{preset.name}: {text}", highlight=False, markup=False)
    say_next("e2bench longbench --model NAME")


def _where(preset: Preset) -> str:
    if preset.repo is None:
        return f"train {preset.recipe}"
    return preset.repo + (" (pickle)" if preset.pickled else "")


def _cells(preset: Preset) -> tuple[str, ...]:
    return (
        preset.name,
        preset.tables,
        short_length(preset.native_window) if preset.native_window else "",
        str(preset.scale) if preset.scale > 1 else "",
        short_length(preset.window),
        f"{preset.input_limit:,}" if preset.input_limit else "",
        preset.chat,
    )
