"""Mutation testing of the modules whose numbers matter most: does a test fail when a line is wrong?

    python tests/mutation.py [MODULE ...]        (make mutation: every module of MODULES, one process)

mutmut changes one expression at a time and runs the module's own tests. It wants an importable package in one folder,
while pyproject.toml maps `tasks/` and `train/` into e2bench, so the tree is laid out below `build/mutation/` as a wheel
has it. Survivors are printed as `mutmut show` prints them; what became of them: docs/mutation.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build" / "mutation"
MODULES = {  # module -> test files
    "e2bench/scoring/metrics.py": ["test_metrics.py"],
    "e2bench/prompts/truncation.py": ["test_truncation.py"],
    "e2bench/train/e2.py": ["test_train_e2.py"],
    "e2bench/scoring/averages.py": ["test_scoring.py", "test_longbench_e.py"],
    "e2bench/rope/methods.py": ["test_rope.py"],
    "e2bench/rope/config.py": ["test_rope.py"],
    "e2bench/rope/switch.py": ["test_rope.py"],
}
# Tests of other processes: the change does not reach them. The first also takes long.
LEFT_OUT = "not scores_need_no_torch and not published_predictions_get"
PLAIN = shutil.ignore_patterns("__pycache__", "assets")


def stage(module: str, tests: list[str]) -> Path:
    """A folder with the package as a wheel has it, the module's tests, and mutmut's settings."""
    folder = STAGE / Path(module).stem
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "e2bench", folder / "e2bench", ignore=PLAIN)
    for name in ("tasks", "train"):
        shutil.copytree(ROOT / name, folder / "e2bench" / name, ignore=PLAIN)
    (folder / "tests").mkdir()
    for name in ("conftest.py", "report_folders.py", *tests):
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    (folder / "pyproject.toml").write_text(settings(module, tests), encoding="utf-8")
    return folder


def settings(module: str, tests: list[str]) -> str:
    """pyproject.toml of the stage: the project's own markers, and what mutmut changes and runs."""
    selection = [f"tests/{name}" for name in tests] + ["-k", LEFT_OUT]
    selection += ["-m", "not slow and not gpu and not network and not smollm2"]
    return f"""
[tool.pytest.ini_options]
markers = ["smollm2", "slow", "gpu", "network"]
[tool.mutmut]
source_paths = ["e2bench"]
only_mutate = ["{module}"]
pytest_add_cli_args_test_selection = {json.dumps(selection)}
track_dependencies = false
use_git_change_detection = false
use_setproctitle = false
"""


def run(module: str) -> None:
    """Print every mutant that was not noticed with its difference, and last how many there were of each status."""
    folder = stage(module, MODULES[module])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    mutmut = [sys.executable, "-m", "mutmut"]
    with (folder / "mutmut.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [*mutmut, "run", "--max-children", "1"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    if done.returncode:
        raise SystemExit(f"mutmut failed on {module}; see {folder / 'mutmut.log'}")
    listed = subprocess.run(
        [*mutmut, "results", "--all", "true"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout
    status = dict(line.strip().rsplit(": ", 1) for line in listed.splitlines() if ": " in line)
    for name, ended in status.items():
        if ended not in ("killed", "timeout"):
            print(f"--- {ended}", flush=True)
            subprocess.run([*mutmut, "show", name], cwd=folder, env=environment, check=False)
    count = Counter(status.values())
    parts = ", ".join(f"{number} {ended}" for ended, number in count.most_common())
    print(f"=== {module}: {count.total()} mutants, {parts}", flush=True)


def main() -> None:
    """Every module named, or all."""
    unknown = set(sys.argv[1:]) - set(MODULES)
    if unknown:
        raise SystemExit(f"not among the modules: {', '.join(sorted(unknown))}; known: {', '.join(MODULES)}")
    for module in sys.argv[1:] or MODULES:
        run(module)


if __name__ == "__main__":
    main()
