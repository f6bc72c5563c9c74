"""What a model's small files claim, checked before anything is built from it: a few bytes may cost days or run code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from e2bench.confined import Beyond, Confined
from e2bench.errors import ModelError
from e2bench.files import read_json, regular

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
MOST_LAYERS = 4096  # where the weights cannot be asked
MOST_EXPERTS = 65_536
MOST_HEADER = 100 << 20  # safetensors' own limit
LOADERS = ("attn_implementation", "experts_implementation", "kernel")  # keys whose value may name code on the hub
PLAIN_SIZE = 65_536  # a number in an adapter's config that costs nothing
PATTERN_S = 10.0

_matching = Confined("e2bench.models.claims:match_all", seconds=PATTERN_S, memory=256 << 20)


def check_folder_claims(folder: Path, *, allow_pickle: bool = False) -> None:
    """Raise ModelError for a model folder whose config or index claims what is not so, or names code or pickles."""
    names = _names(folder, allow_pickle)
    if (folder / "config.json").is_file():
        tensors = None if names is None else len(names)
        check_config(read_json(folder / "config.json"), str(folder / "config.json"), tensors)


def check_config(config: Mapping[str, Any], where: str, tensors: int | None = None) -> None:
    """Raise ModelError for kernels of the hub, and for more layers than the weights could hold.

    tensors: of the weights; None: not known.
    """
    for key, value in _entries(config):
        if any(word in key for word in LOADERS) and isinstance(value, str) and re.search("[/:]", value):
            raise ModelError(
                f"{where} says {key} = {value[:60]!r}: code from the hub, which is never loaded; take the entry out"
            )
        if not isinstance(value, int):
            continue
        if "layer" in key and value > (MOST_LAYERS if tensors is None else max(tensors, 64)):
            held = "" if tensors is None else f", and the weights hold {tensors:,} tensors"
            raise ModelError(f"{where} says {key} = {value:,}{held}: no such model is built; mend the config")
        if "expert" in key and value > MOST_EXPERTS:
            raise ModelError(f"{where} says {key} = {value:,}; at most {MOST_EXPERTS:,} experts are built")


def check_index(index: Mapping[str, Any], where: str, *, allow_pickle: bool) -> list[str]:
    """Names of the tensors of an index. Raises ModelError where it maps to pickles, or out of its folder."""
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{where} has no weight_map of names; fetch it again")
    for name in sorted(set(files.values())):
        if name != Path(name).name or "\\" in name:
            raise ModelError(f"{where} names a file outside its folder: {name[:80]!r}")
        if not name.endswith(".safetensors") and not allow_pickle:
            raise ModelError(
                f"{where} maps to {name[:80]}, a pickle, which can run code; convert it to safetensors, or give "
                "--allow-pickle to read its tensors alone"
            )
    return list(files)


def _names(folder: Path, allow_pickle: bool) -> list[str] | None:
    """Names of all tensors, by the index or the files' headers; None where they cannot be read here."""
    if (folder / INDEX).is_file():
        return check_index(read_json(folder / INDEX), str(folder / INDEX), allow_pickle=allow_pickle)
    files = sorted(folder.glob("*.safetensors"))
    try:
        return [name for file in files for name in _shapes(file)] if files else None
    except (OSError, ValueError, RecursionError):  # transformers will say what is wrong with it
        return None


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file, by name. Raises OSError or ValueError."""
    with regular(file).open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MOST_HEADER:
            raise ValueError("no header is so long")
        header = json.loads(opened.read(length))
    if not isinstance(header, dict):
        raise ValueError("no header of tensors")
    return {name: _shape(entry) for name, entry in header.items() if name != "__metadata__"}


def _shape(entry: Any) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        raise ValueError("no header of tensors")
    return tuple(shape)


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of everything in JSON that is neither an object nor a list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _entries(inner, str(name) if not any(w in key for w in LOADERS) else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, key)
    elif not isinstance(value, bool):
        yield key, value


# adapters


def check_adapter_folder(adapter: Path, base: Path) -> None:
    """`check_adapter` before the base is loaded: its modules are those that the headers of its weights name."""
    config = adapter / "adapter_config.json"
    tensors = _names(base, allow_pickle=True)
    try:
        shapes = _shapes(adapter / ADAPTER)
    except (OSError, ValueError, RecursionError):  # what is wrong with it is said when it is read
        return
    if tensors is not None:
        check_adapter(read_json(config), str(config), shapes, [name.rpartition(".")[0] for name in tensors])


def check_adapter(
    config: Mapping[str, Any], where: str, shapes: Mapping[str, tuple[int, ...]], modules: list[str]
) -> None:
    """Raise ModelError for an adapter whose config would build more than its file holds, or search without end.

    shapes: of the file's tensors.    modules: names in the base, which PEFT matches the config's patterns against.
    """
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, value in _entries(config):
        is_rank = key == "r"
        if isinstance(value, int) and "alpha" not in key and value > (largest if is_rank else max(largest, PLAIN_SIZE)):
            raise ModelError(
                f"{where} says {key} = {value:,}, and the largest side of a tensor in its file is {largest:,}; the "
                "config is not this adapter's"
            )
    ranks = config.get("rank_pattern")
    for name, rank in ranks.items() if isinstance(ranks, dict) else ():
        if not isinstance(rank, int) or rank > largest:
            raise ModelError(f"{where} gives {name[:60]!r} the rank {str(rank)[:20]}, which no tensor of its file has")
    patterns = sorted(set(_patterns(config)))
    try:
        _matching(patterns=patterns, names=modules)
    except Beyond as error:
        raise ModelError(
            f"{where}: its patterns (target_modules, rank_pattern, …) cannot be matched against the base's "
            f"{len(modules):,} modules: {error}"
        ) from None


def _patterns(config: Mapping[str, Any]) -> Iterator[str]:
    """Every text that PEFT may take for a regular expression."""
    for key, value in config.items():
        if "modules" in key or "layers" in key or "parameters" in key:
            several = value if isinstance(value, list) else [value]
        elif "pattern" in key:
            several = list(value) if isinstance(value, dict | list) else [value]
        else:
            continue
        yield from (text for text in several if isinstance(text, str))


def match_all(patterns: list[str], names: list[str]) -> int:
    """In the child: how many names match, each pattern tried in the ways that PEFT tries them."""
    found = 0
    for pattern in patterns:
        for way in (pattern, rf"(.*\.)?({pattern})$", rf"(^|.*\.){pattern}($|\..*)"):
            try:
                compiled = re.compile(way)
            except re.error:
                continue  # a name that is no expression, or PEFT's own error
            found += sum(compiled.match(name) is not None or compiled.fullmatch(name) is not None for name in names)
    return found


def check_layers_of_gguf(keys: Mapping[str, Any], tensors: int, where: str) -> None:
    """Raise ModelError where a GGUF header counts more blocks than it has tensors."""
    for key, value in keys.items():
        if key.endswith("block_count") and isinstance(value, int) and value > tensors:
            raise ModelError(f"{where} says {key} = {value:,} and holds {tensors:,} tensors")


def check_hub_claims(name: str, revision: str, *, allow_pickle: bool) -> None:
    """The same of a model on the hub, whose small files are fetched first."""
    from transformers.utils.hub import cached_file

    kinds = ("gated_repo", "missing_entries", "connection_errors")
    quiet = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    try:
        index, config = (cached_file(name, file, revision=revision, **quiet) for file in (INDEX, "config.json"))
    except (OSError, ValueError):  # the loader itself will say what is wrong
        return
    tensors = None
    if index is not None:
        tensors = len(check_index(read_json(Path(index)), f"{name}: {INDEX}", allow_pickle=allow_pickle))
    if config is not None:
        check_config(read_json(Path(config)), f"{name}: config.json", tensors)
