"""`--engine`: a server is started, known as ours, used and stopped, whatever happens to it or to us."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2bench.errors import E2BenchError, RunFailed
from e2bench.experiments.base import EXPERIMENTS, experiment
from e2bench.experiments.loading import check_model, load_model
from e2bench.experiments.options import Common
from e2bench.experiments.passkey import PassKey
from e2bench.experiments.ruler import Ruler
from e2bench.experiments.run import run_experiment
from e2bench.models import server as servers
from e2bench.models.loading import embedded_model
from e2bench.models.protocols import Prompt
from e2bench.models.secrets import Secret
from e2bench.models.server import Server, gpu_shares, wait_until_ready
from e2bench.models.serving import BY_NAME, Command
from e2bench.rope.methods import RopeScaling

VLLM = BY_NAME["vllm"]


@pytest.fixture
def program(engine_program: Path) -> Path:
    """A small engine's executable."""
    return engine_program


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Path]:
    """The file to which the engines of a test write their own and their children's numbers. All must have ended."""
    path = tmp_path / "children"
    yield path
    deadline = time.monotonic() + 20
    numbers = [int(number) for number in path.read_text().split()] if path.exists() else []
    while left := [number for number in numbers if is_running(number)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def is_running(number: int) -> bool:
    """Whether a process is there, and no zombie that nobody has asked after."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def given(program: Path, **values: Any) -> Common:
    return Common.read({"engine": "vllm", "engine_command": str(program), **values})


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "passkey.jsonl").read_text().splitlines()]


def said(row: dict[str, Any]) -> dict[str, str]:
    """What the engine says of itself in an answer."""
    return dict(word.split("=") for word in row["pred"].split())


PASSKEY = ("passkey", "--engine", "vllm", "--depths", "2", "--trials", "2", "--template", "e2bench", "--no-early-stop")


# a run


def test_each_length_is_answered_by_a_server_with_its_scale(program, children, tmp_path, cli):
    arguments = [*PASSKEY, "--engine-command", program, "--lengths", "512..2k", "--out", tmp_path / "run"]
    ended = cli(*arguments, "--engine-options", f"--children {children}")
    assert ended.code == 0, ended.err
    assert [(row["length"], said(row)["g"], said(row)["context"]) for row in rows(tmp_path / "run")] == [
        (length, f"{length / 512}", f"{length}") for length in (512, 1024, 2048) for _ in range(4)
    ]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    engine = run["engine"]
    assert (engine["name"], engine["version"], engine["servers"]) == ("vllm", "0.0.1", 1)
    assert engine["options"] == ["--children", str(children)]
    assert [("--max-model-len 1024" in line, '"factor": 2.0' in line) for line in engine["commands"]] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    assert (run["resolved"]["engine"], run["resolved"]["dtype"], run["device"]) == ("vllm", "bfloat16", "server")
    log = (tmp_path / "run" / "vllm.log").read_text()
    assert log.count("$ ") == 3
    keys = [line.rpartition(" ")[2] for line in log.splitlines() if line.startswith("the key is ")]
    assert len(set(keys)) == 3, "one key a start"
    assert not any(key in (tmp_path / "run" / "run.json").read_text() for key in keys)

    # asked again, a finished run starts nothing
    assert cli(*arguments, "--engine-options", f"--children {children}").code == 0
    assert (tmp_path / "run" / "vllm.log").read_text() == log

    # and is not continued by another engine
    ended = cli("passkey", *PASSKEY[3:], "--lengths", "512..2k", "--out", tmp_path / "run")
    assert ended.code == 2
    assert "holds a run with engine = vllm, not local; choose another --out" in ended.err


def test_requests_are_spread_over_several_servers_that_share_the_gpus_out(program, children, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    common = given(program, engine_servers=2, engine_options=f"--children {children}", out=tmp_path / "run")
    own = PassKey.read({"lengths": "512", "depths": 4, "trials": 4, "early_stop": False})
    assert run_experiment(own, common) is not None
    ports = [said(row)["port"] for row in rows(tmp_path / "run")]
    assert (len(ports), len(set(ports))) == (16, 2)
    logs = [(tmp_path / "run" / name).read_text() for name in ("vllm.log", "vllm-2.log")]
    assert [log.partition(" gpus ")[2].split()[0] for log in logs] == ["2", "5"]
    assert len(children.read_text().split()) == 4


def test_gpus_are_shared_out_or_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-7,3")
    assert gpu_shares(2, 2) == ["0,1", "GPU-7,3"]
    assert gpu_shares(1, 4) == [None]
    with pytest.raises(E2BenchError, match="--engine-servers 3 need 6 GPUs, 2 each, and 4 are here"):
        gpu_shares(3, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_shares(2, 1) == [None, None]


def test_a_model_is_served_once_for_several_runs_from_python(program, children, tmp_path):
    import e2bench

    model = e2bench.load(engine="vllm", engine_command=str(program), engine_options=f"--children {children}")
    for name, trials in (("first", 1), ("second", 2)):
        e2bench.run("passkey", model, lengths="512", depths=1, trials=trials, scale=4, out=tmp_path / name)
    model.close()
    assert len(children.read_text().split()) == 2
    assert not (tmp_path / "second" / "vllm.log").exists()
    prompt = Prompt(model.encode("The pass key is"), 16)
    ((_, again),) = model.generate([prompt], RopeScaling("linear", 2))
    assert again.text.startswith("g=2.0 context=1024 ")
    model.close()


# what goes wrong


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--fault crash", 1, r"vLLM ended while it was loading .*has model type `tiny`\); its whole log: .*vllm.log"),
        ("--unknown", 1, r"vLLM ended while it was loading .*unrecognized arguments: --unknown"),
        ("--fault hang", 1, r"vLLM was not ready after 1 s \(--engine-wait\)"),
        ("--fault foreign", 1, r"another server than the one started here answers at port \d+, or"),
        ("--fault dies", 1, r"vLLM ended in the middle of its work .*an illegal memory access"),
    ],
)
def test_a_server_that_fails_gives_one_line_and_leaves_no_process(
    program, children, tmp_path, cli, monkeypatch, options, code, message
):
    import re

    monkeypatch.setattr("e2bench.models.endpoint.LONGEST_WAIT_S", 0.01)
    ended = cli(
        *PASSKEY, "--engine-command", program, "--lengths", "512", "--out", tmp_path / "run", "--engine-wait",
        "1" if "hang" in options else "60", "--engine-options", f"{options} --children {children}",
    )  # fmt: skip
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("e2bench: ")]
    assert re.search(message, line)
    key = next(
        (line[11:] for line in (tmp_path / "run" / "vllm.log").read_text().splitlines() if "the key is" in line), None
    )
    assert key is None or key not in ended.err


def test_a_port_that_another_program_took_is_one_line(program, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(servers, "free_port", lambda: taken.getsockname()[1])
        own = PassKey.read({"lengths": "512", "depths": 1, "trials": 1})
        with pytest.raises(RunFailed, match=r"ended while it was loading .*Address already in use"):
            run_experiment(own, given(program, out=tmp_path / "run"))


@pytest.fixture
def interruptible():
    """SIGINT as at a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_server_and_the_run_goes_on_with_the_same_command(program, children, tmp_path, cli):
    log = tmp_path / "run" / "vllm.log"
    arguments = [*PASSKEY, "--engine-command", program, "--lengths", "512", "--out", tmp_path / "run"]

    def interrupt() -> None:
        while not children.exists():
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ended = cli(*arguments, "--engine-options", f"--fault slow --children {children}")
    thread.join()
    assert ended.code == 130, ended.err
    assert not any(map(is_running, map(int, children.read_text().split())))
    ended = cli(*arguments, "--engine-options", f"--children {children}")
    assert ended.code == 0, ended.err
    assert "was begun with vllm 0.0.1 --fault slow" in ended.err
    assert len(rows(tmp_path / "run")) == 4
    assert log.read_text().count("$ ") == 2


STARTER = """
import sys
from pathlib import Path
from e2bench.models.server import Server, new_key, wait_until_ready
from e2bench.models.serving import BY_NAME, Command
words = (sys.argv[1], "serve", "tiny", "--max-model-len", "99", "--children", sys.argv[2])
server = Server(BY_NAME["vllm"], Command(words), new_key(), Path(sys.argv[3]))
wait_until_ready([server], 60)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, None])
def test_however_this_process_ends_the_server_and_its_children_end(program, children, tmp_path, number):
    starter = [sys.executable, "-c", STARTER, str(program), str(children), str(tmp_path / "log")]
    with subprocess.Popen(starter, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        numbers = list(map(int, children.read_text().split()))
        assert (len(numbers), all(map(is_running, numbers))) == (2, True)
        if number is not None:
            process.send_signal(number)  # without one it ends by itself, and stops nothing
        elif process.stdin is not None:
            process.stdin.close()
        assert process.wait(60) == (0 if number is None else -number)


def test_a_server_takes_no_other_key(program, tmp_path):
    import httpx

    words = (str(program), "serve", "tiny", "--max-model-len", "99")
    server = Server(VLLM, Command(words), Secret("0123456789abcdef"), tmp_path / "log")
    wait_until_ready([server], 60)
    for key, status in (("0123456789abcdef", 200), ("another", 401)):
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.get(f"{server.url}/models", headers=headers, trust_env=False).status_code == status
    server.stop()
    assert not server.is_running
    assert "0123456789abcdef" in (tmp_path / "log").read_text()
    assert "the key is ***" in server.last_lines()


# what is refused before anything is loaded


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "http://127.0.0.1:1/v1"}, "is served already"),
        ({"model": "x.gguf"}, "e2bench export --model x.gguf"),
        (
            {"engine_command": "/nowhere/vllm"},
            "no executable /nowhere/vllm; --engine-command takes the vllm of",
        ),
        ({"device": "cpu"}, "--device is not for --engine vllm"),
        ({"served_api": "chat"}, "--served-api is not for --engine vllm"),
        ({"engine": "local", "tensor_parallel": 2}, "is for --engine vllm or sglang"),
        ({"engine": "tgi"}, "unknown engine 'tgi'; known: local, vllm, sglang"),
    ],
)
def test_what_cannot_be_started_is_refused_at_once(program, values, message):
    with pytest.raises(E2BenchError, match=message):
        check_model(given(program, **values))


def test_an_engine_that_is_not_installed_says_what_helps(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(E2BenchError, match=r"no vllm here; install vLLM \(pip install vllm\), or --engine-command"):
        check_model(Common.read({"engine": "vllm"}))


def test_what_is_no_engine_does_not_tell_its_version(tmp_path):
    with pytest.raises(E2BenchError, match=r"does not tell the version of SGLang: .*sglang; is it installed there"):
        servers.version_of(BY_NAME["sglang"], sys.executable)


def test_several_processes_are_refused(program, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(E2BenchError, match="starts its own processes; run one"):
        check_model(given(program))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_that_need_losses_refuse_an_engine_in_one_line(program, name):
    check: Callable[[Common], None] = experiment(name)().check
    if experiment(name)().needed() == "Generator":
        check(given(program))
        return
    with pytest.raises(E2BenchError, match=f"{name} needs a model's losses.*; leave --engine out"):
        check(given(program))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": "per-input"}, "--scale per-input would start vLLM anew for every other prompt"),
        ({"scale": "4", "method": "ntk"}, "has no fixed form in a config"),
        ({"scale": "2", "method": "yarn"}, "vLLM has no positions beyond 1024 tokens at this scaling"),
    ],
)
def test_scalings_that_no_server_can_be_given_are_refused_before_it_starts(program, tmp_path, values, message):
    common = given(program, out=tmp_path / "run", **values)
    with pytest.raises(E2BenchError, match=message):
        run_experiment(PassKey.read({"lengths": "512,2k", "depths": 1, "trials": 1}), common)
    assert not (tmp_path / "run").exists()


def test_ruler_asks_for_a_context_that_holds_bos_beside_its_length(program, tmp_path, monkeypatch):
    monkeypatch.setenv("E2BENCH_CACHE", str(tmp_path))
    model = load_model(given(program), needs="Generator")
    own = Ruler.read({"lengths": "1k,2k", "tasks": "vt", "samples": 1, "data": "demo"})
    plan = own.plan(model, own.rule(model, Common()), Common(), own.inputs(Common()))
    assert model.encode("") == [model.tokenizer.bos_token_id]
    assert [(length, scaling.factor) for length, scaling in plan.scalings] == [(1025, 2), (2049, 4)]
    model.expect(plan.scalings)
    first, _ = model.describe()["engine"]["commands"]
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1" in first
    assert not any("max_position_embeddings" in word for word in first)


def test_a_dry_run_needs_no_engine(tmp_path, cli):
    ended = cli(*PASSKEY, "--lengths", "512,1k", "--dry-run", "--engine-command", "/nowhere/vllm")
    assert ended.code == 0, ended.err
    assert "server's own" in ended.out + ended.err


# answers


def whole(text: str) -> str:
    """Without the bytes of a last character that the budget cut."""
    return text.rstrip("\ufffd")


def compared(program: Path, tmp_path: Path, **values: Any) -> tuple[int, int]:
    """(equal answers, all answers) of a run on an engine beside one on a model loaded here, at g = 1, 2 and 4."""
    own = PassKey.read({"lengths": "512..2k", "depths": 3, "trials": 2, "template": "e2bench", "early_stop": False})
    run_experiment(own, given(program, dtype="float32", out=tmp_path / "engine", **values))
    run_experiment(own, Common.read({"dtype": "float32", "device": "cpu", "out": tmp_path / "local"}))
    pairs = list(zip(rows(tmp_path / "engine"), rows(tmp_path / "local"), strict=True))
    for length in (512, 1024, 2048):
        of_it = [(a, b) for a, b in pairs if a["length"] == length]
        equal = sum(whole(a["pred"]) == whole(b["pred"]) for a, b in of_it)
        found = [sum(row["success"] for row in side) for side in zip(*of_it, strict=True)]
        print(f"{length} tokens, g = {of_it[0][0]['scale']}: {equal} of {len(of_it)} answers equal; found {found}")
    return sum(whole(a["pred"]) == whole(b["pred"]) for a, b in pairs), len(pairs)


@pytest.mark.slow
def test_answers_of_an_engine_are_those_of_the_model_loaded_here(program, tmp_path):
    assert compared(program, tmp_path, engine_options="--real") == (18, 18)


@pytest.mark.slow
def test_answers_of_vllm_are_those_of_the_model_loaded_here(tmp_path):
    """E2BENCH_VLLM=/its/env/bin/vllm; E2BENCH_VLLM_OPTIONS for more of its options, such as --enforce-eager."""
    program = os.environ.get("E2BENCH_VLLM")
    if program is None:
        pytest.skip("set E2BENCH_VLLM to a vllm executable: it is asked for pass keys at g = 1, 2 and 4")
    equal, all_of_them = compared(Path(program), tmp_path, engine_options=os.environ.get("E2BENCH_VLLM_OPTIONS", ""))
    assert all_of_them == 18
    assert equal >= 17, "a tie in rounding may turn one answer, not more"
    run = json.loads((tmp_path / "engine" / "run.json").read_text())
    assert run["engine"]["version"][0].isdigit()
    assert run["model"]["path"].endswith(embedded_model().name)
