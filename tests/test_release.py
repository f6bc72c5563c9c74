"""What a release holds, and that it runs where no checkout is."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import e2bench

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("e2bench", "tasks", "train", "tests", "pyproject.toml", "MANIFEST.in")
BUILT_FROM += ("README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "CITATION.cff")
# Written by whoever runs Python in the clean environment: no file of the checkout may be opened there.
WATCH = """
import os, sys
CHECKOUT, ENVIRONMENT, SEEN = {checkout!r} + os.sep, {environment!r} + os.sep, {seen!r}
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.abspath(arguments[0])
        if path.startswith(CHECKOUT) and not path.startswith(ENVIRONMENT):
            descriptor = os.open(SEEN, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, (path + chr(10)).encode())
            os.close(descriptor)
sys.addaudithook(watch)
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    source.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    # Without isolation: the environment of the tests has setuptools, and the network is not needed.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return folder / "dist"


def names_in_wheel(released: Path) -> set[str]:
    """Every file of the wheel."""
    with zipfile.ZipFile(next(released.glob("*.whl"))) as wheel:
        return set(wheel.namelist())


def shipped(folder: str, inside: str) -> set[str]:
    """The files of a folder of the checkout as the wheel names them."""
    return {f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" for path in files_below(ROOT / folder)}


def files_below(folder: Path) -> list[Path]:
    """Its files, compiled ones left out."""
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_wheel_holds_the_package_and_nothing_else(released: Path) -> None:
    expected = shipped("e2bench", "e2bench") | shipped("tasks", "e2bench/tasks") | shipped("train", "e2bench/train")
    names = names_in_wheel(released)
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == expected
    for needed in (
        "assets/tiny/model.safetensors",
        "reporting/templates/page.html",
        "reporting/published/table2.csv",
        "py.typed",
    ):
        assert f"e2bench/{needed}" in names
    assert "e2bench/train/recipes/llama2-7b.yaml" in names
    assert {name.rpartition("licenses/")[2] for name in metadata if "licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_sdist_builds_the_wheel_and_holds_no_tests_or_results(released: Path) -> None:
    with tarfile.open(next(released.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "NOTICE", "CITATION.cff", "README.md", "CHANGELOG.md"} <= names
    assert {"e2bench/assets/tiny/model.safetensors", "tasks/longbench.py", "train/recipes/tiny-e2.yaml"} <= names
    assert not [name for name in names if name.startswith(("tests", "results"))]


def test_the_version_is_written_in_one_place(released: Path) -> None:
    assert next(released.glob("*.whl")).name.startswith(f"e2bench-{e2bench.__version__}-")
    assert importlib.metadata.version("e2bench") == e2bench.__version__
    sources = [ROOT / "pyproject.toml", ROOT / "CITATION.cff"]
    sources += [path for name in ("e2bench", "tasks", "train") for path in (ROOT / name).rglob("*.py")]
    holding = [path.name for path in sources if f'"{e2bench.__version__}"' in path.read_text(encoding="utf-8")]
    assert holding == ["__init__.py"]


def test_the_notice_names_what_is_embedded() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    named = re.findall(r"^- (?:the )?([\w./]+)", notice, re.MULTILINE)
    missing = [name for name in named if "/" in name and not (ROOT / name).exists()]
    assert not missing
    embedded = [path for name in ("e2bench", "tasks", "train") for path in files_below(ROOT / name)]
    data = {path for path in embedded if path.suffix in (".safetensors", ".csv", ".npz", ".gguf", ".jsonl", ".parquet")}
    listed = [ROOT / name for name in named if (ROOT / name).is_dir()]
    assert data and all(any(path.is_relative_to(folder) for folder in listed) for path in data)


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what CFF 1.2.0 requires
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2401.06951"


def test_the_workflow_runs_the_same_script_on_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["ci"]
    assert job["steps"][-1]["run"] == ".ci/run" and os.access(ROOT / ".ci" / "run", os.X_OK)
    classifiers = importlib.metadata.metadata("e2bench").get_all("Classifier") or []
    supported = [c.rpartition(" ")[2] for c in classifiers if re.search(r"Python :: 3\.\d+$", c)]
    assert job["strategy"]["matrix"]["python"] == supported


@pytest.fixture
def clean(released: Path, tmp_path: Path) -> Path:
    """An environment with the wheel, the dependencies of this one, and not the checkout."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = Path(
        subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()
    )  # fmt: skip
    wheel = next(released.glob("*.whl"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    # Packages found through a line of a .pth file; the .pth files among them, the editable install's too, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    watch = WATCH.format(checkout=str(ROOT), environment=str(Path(sys.prefix)), seen=str(tmp_path / "seen.txt"))
    (site / "sitecustomize.py").write_text(watch, encoding="utf-8")
    return environment


@pytest.mark.slow
def test_quickstart_runs_from_the_wheel_where_no_checkout_is(clean: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "E2BENCH"))}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    where = tmp_path / "elsewhere"
    where.mkdir()
    asked = (
        "import e2bench, e2bench.tasks.longbench, e2bench.train.e2 as e2; print(e2bench.__file__); print(e2.__file__)"
    )
    python = subprocess.run(
        [clean / "bin" / "python", "-c", asked], cwd=where, env=environment, capture_output=True, text=True, check=True
    )
    assert all(Path(path).is_relative_to(clean) for path in python.stdout.split())
    done = subprocess.run(
        [clean / "bin" / "e2bench", "quickstart"],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    report = where / "results" / "quickstart" / "report"
    assert {"index.html", "table2.csv", "table3.csv", "passkey.png"} <= {path.name for path in report.iterdir()}
    assert not (tmp_path / "seen.txt").exists(), (tmp_path / "seen.txt").read_text(encoding="utf-8")[:2000]
