"""The house's layers: imports point downward, no circles, torch only in the named places."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up (docs/architecture.md). A module may import its own layer and those below.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "e2bench",
        "errors",
        "extras",
        "files",
        "terminal",
        "hub",
        "compat",
        "settings",
        "marked",
        "confined",
        "environment",
    ),
    ("rope",),
    ("models",),
    ("prompts", "data", "scoring", "runs"),
    ("tasks",),
    ("experiments", "train", "reporting"),
    ("doctor", "library"),
    ("suites",),
    ("cli", "__main__"),
)
MAY_IMPORT_TORCH = (
    "models",
    "train",
    "rope.switch",
    "runs.processes",
    "runs.runner",
    "experiments.windows",
    "experiments.run",
)


def modules() -> dict[str, Path]:
    """Module name below e2bench: file."""
    found = {}
    for top, folder in (("", ROOT / "e2bench"), ("tasks", ROOT / "tasks"), ("train", ROOT / "train")):
        for path in folder.rglob("*.py"):
            parts = [*([top] if top else []), *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "e2bench"] = path
    return found


MODULES = modules()


def imports(path: Path, *, lazy: bool, types: bool = False) -> Iterator[str]:
    """Full names of what a file imports; with `lazy` also inside functions, with `types` also for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in walk(tree, lazy=lazy, types=types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def walk(node: ast.AST, *, lazy: bool, types: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not types:
            continue
        yield child
        if lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk(child, lazy=lazy, types=types)


def ours(name: str) -> str | None:
    """The module below e2bench that an imported name stands in; None for other packages."""
    if name.partition(".")[0] != "e2bench":
        return None
    inner = name.removeprefix("e2bench").lstrip(".")
    while inner and inner not in MODULES:
        inner = inner.rpartition(".")[0]
    return inner or "e2bench"


def layer(module: str) -> int:
    top = module.partition(".")[0]
    return next(at for at, names in enumerate(LAYERS) if top in names)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_downward(module: str) -> None:
    for name in imports(MODULES[module], lazy=True):
        used = ours(name)
        if used is None or used == "e2bench":  # the version
            continue
        assert layer(used) <= layer(module), f"{module} imports {used}, which is above it"


def test_there_is_no_import_circle() -> None:
    """Not for type checking either: what needs each other's names is one thing in two files."""
    graph = {
        module: {u for n in imports(path, lazy=True, types=True) if (u := ours(n)) and u not in (module, "e2bench")}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for used in sorted(graph[module]):
            visit(used, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_torch_is_imported_in_the_named_places_only(module: str) -> None:
    heavy = [n for n in imports(MODULES[module], lazy=True) if n.partition(".")[0] in ("torch", "peft", "accelerate")]
    assert not heavy or module.startswith(MAY_IMPORT_TORCH), f"{module} imports {heavy}"


@pytest.mark.parametrize(
    "code",
    [
        "import e2bench.cli.commands",
        "import e2bench.experiments.base as b; [b.experiment(name) for name in b.EXPERIMENTS]",
        "import e2bench.reporting, e2bench.experiments.stored, e2bench.experiments.compare",
        "from e2bench import library",
    ],
)
def test_the_command_line_scoring_and_reporting_import_no_torch(code: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys, json; print(json.dumps('torch' in sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(said.stdout) is False
