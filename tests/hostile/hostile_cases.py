"""What every hostile case is held to: e2bench's own errors alone, no write outside its folder, nothing executed.

`hostile` makes a property test of so many cases and says so to `DECLARED`; `case` counts what really ran in `RAN`, and
watches it through the interpreter's audit events. test_total.py compares the two with what README states.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from e2bench.errors import E2BenchError, one_line

Test = TypeVar("Test", bound=Callable[..., None])
DECLARED: dict[str, int] = {}
RAN: Counter[str] = Counter()
MODULES: set[str] = set()
MOST_BYTES = 600 << 20  # above what the process held when a module of tests began
FACTOR = int(os.environ.get("E2BENCH_HOSTILE", "1"))  # for longer hunts


def hostile(cases: int, *values: Any, **named: Any) -> Callable[[Test], Test]:
    """A property test over generated input: the same `cases` at every run, none saved."""

    def made(test: Test) -> Test:
        DECLARED[f"{test.__module__}:{test.__name__}"] = cases * FACTOR
        chosen = settings(
            max_examples=cases * FACTOR,
            derandomize=True,
            deadline=None,
            database=None,
            phases=(Phase.explicit, Phase.generate),  # a failure is shown as it came: shrinking takes minutes
            suppress_health_check=list(HealthCheck),
        )
        return chosen(given(*values, **named)(test))  # type: ignore[return-value]

    return made


# ---- one case


class _Watch:
    """While a case runs: the folder it may write to, and what it did that it must not."""

    folder: str | None = None
    broken: list[str]


WRITES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree"}
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn"}
FREE = re.compile(r"__pycache__|^/dev/null$|\.nbi$|\.nbc$")  # what imports leave


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.folder is None:
        return
    if event in STARTS:
        _Watch.broken.append(f"{event} {arguments}")
    elif event == "socket.connect" and not str(arguments[1]).startswith("('127.0.0.1'"):
        _Watch.broken.append(f"{event} {arguments[1]}")
    elif event in WRITES or (event == "open" and _writes(arguments)):
        _check_place(event, arguments)


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    written = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return bool(set(mode or "") & set("wax+")) or bool(isinstance(flags, int) and flags & written)


def _check_place(event: str, arguments: tuple[Any, ...]) -> None:
    for path in arguments[: 2 if event in ("os.rename", "os.symlink", "os.link") else 1]:
        if isinstance(path, int):
            continue
        real = os.path.realpath(os.path.join(_base(event, arguments), os.fsdecode(path)))
        if not real.startswith(f"{_Watch.folder}{os.sep}") and real != _Watch.folder and not FREE.search(real):
            _Watch.broken.append(f"{event} {real}")


def _base(event: str, arguments: tuple[Any, ...]) -> str:
    """What a relative path is relative to: shutil.rmtree removes by name below an open folder."""
    folder = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    return os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""


sys.addaudithook(_heard)


@contextmanager
def case(folder: Path) -> Iterator[None]:
    """Count one case and hold it to the rules; it may write below `folder` only."""
    test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
    RAN[f"{Path(test.split('::')[0]).stem}:{test.split('::')[1].split('[')[0]}"] += 1
    _Watch.folder, _Watch.broken = os.path.realpath(folder), []
    try:
        yield
    except E2BenchError as error:
        line = one_line(error)
        assert line and line.isprintable() and len(line) <= 1001
    finally:
        _Watch.folder = None
    assert not _Watch.broken, _Watch.broken


_peaks: list[int] = []


@contextmanager
def bounded_memory(most: int = MOST_BYTES) -> Iterator[None]:
    """Peak memory stays within `most` bytes of what there was; a bomb meets RLIMIT_AS before the machine does."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return

    def now(field: str) -> int:
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]

    def noted() -> None:  # for every check that is open: an inner one begins the peak anew
        _peaks[:] = [max(peak, now("VmHWM")) for peak in _peaks]

    noted()
    Path("/proc/self/clear_refs").write_text("5")
    _peaks.append(0)
    before, limits = now("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now("VmSize") + 4 * most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        noted()
        more = _peaks.pop() - before
    assert more <= most, f"{more >> 20} MiB"


@pytest.fixture(scope="module", autouse=True)
def little_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Imported by every module of this folder: all its cases together stay within MOST_BYTES."""
    MODULES.add(request.module.__name__)
    with bounded_memory():
        yield


# ---- hostile values

CONTROL = "\x1b]0;title\x07\x1b[2J\x9b31m\r\n\t\x00\u202e\u2028\x85\u200b"
MARKUP = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "＝1+1",
    r"\input{/etc/passwd}\write18{id}",
    "$^_&%#{}~\\",
    "[red]bold[/red][link=http://x]y[/link]",
    "{{ 7*7 }}{% include '/etc/passwd' %}",
    "| a | b |\n| --- |",
    "../../../../etc/passwd",
    "/etc/passwd",
    "C:\\Windows\\x",
    "__import__('os').system('id')",
    "\ud800",
    CONTROL,
)
texts = st.one_of(
    st.sampled_from(MARKUP),
    st.text(st.characters(), max_size=40),
    st.text("<>&\"'\\{}[]$%#_^~=+-@|`*!\x1b\x07\r\n\t\u202e", max_size=30),
)
numbers = st.one_of(
    st.integers(),
    st.integers(-5, 5),
    st.just(10**400),
    st.floats(allow_nan=True, allow_infinity=True),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


def objects(known: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the known fields: most as they should be, some of another kind, some missing, some strange."""
    each = {name: st.one_of(good, good, good, values) for name, good in known.items()}
    whole = st.fixed_dictionaries({}, optional=each)
    good = st.fixed_dictionaries(dict(known))
    one_wrong = st.tuples(good, st.sampled_from(sorted(known)), values).map(lambda t: {**t[0], t[1]: t[2]})
    one_gone = st.tuples(good, st.sampled_from(sorted(known))).map(
        lambda t: {k: v for k, v in t[0].items() if k != t[1]}
    )
    return st.one_of(one_wrong, one_wrong, one_gone, whole, good)


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """A good file, cut, with bytes changed, or with others put in."""

    def change(drawn: tuple[int, int, bytes]) -> bytes:
        at, gone, put = drawn
        return content[:at] + put + content[at + gone :]

    places = st.integers(0, len(content))
    return st.tuples(places, st.one_of(st.integers(0, 8), st.just(len(content))), st.binary(max_size=8)).map(change)
