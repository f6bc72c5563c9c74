"""Ranks that die, resumed with other numbers of ranks; launchers' variables. CPU processes, real sockets and files."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import slowed
import torch.distributed as dist

from e2bench.errors import RunFailed
from e2bench.runs import processes
from e2bench.runs.processes import Processes, first_node
from e2bench.tasks.demo import write_longbench

TASKS = ("trec", "samsum", "lcc", "passage_count")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def joined(world):
    """`world` members of one store, as threads of this process would hold them."""
    port = free_port()
    stores = [dist.TCPStore("127.0.0.1", port, None, rank == 0, timedelta(seconds=10)) for rank in range(world)]
    return [Processes(rank, world, store) for rank, store in enumerate(stores)]


def command(folder, data, out, program=("-m", "e2bench")):
    own = ["longbench", "--model", str(folder), "--scale", "4", "--data", str(data), "--tasks", ",".join(TASKS)]
    return [*program, *own, "--window", "320", "--batch-size", "1", "--no-early-stop", "--out", str(out)]


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def launch(world, arguments, **options):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return subprocess.Popen([*torchrun, *arguments], env=environment(), start_new_session=True, **options)


def kill_with_ranks(launched):
    """SIGKILL for torchrun and its ranks at once; each rank leads a session of its own, which killpg would miss."""
    agent = psutil.Process(launched.pid)
    agent.suspend()  # it would report and end the others
    ranks = agent.children(recursive=True)
    for process in [*ranks, agent]:
        process.kill()
    launched.wait()
    while not all(ended(rank) for rank in ranks):
        time.sleep(0.02)


def ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def records(out):
    """file: its lines but for the seconds, which no two runs share."""
    found = {}
    for path in sorted(out.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return found


def lines(out):
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*.jsonl"))


def test_a_killed_run_of_three_resumed_with_two_gives_the_files_of_a_single_process(tiny_folder, tmp_path):
    data = write_longbench(tmp_path / "data", examples=6)
    single = [sys.executable, *command(tiny_folder, data, tmp_path / "one")]
    subprocess.run(single, env=environment(), check=True, capture_output=True)
    total = lines(tmp_path / "one")

    out = tmp_path / "many"
    stoppable = command(tiny_folder, data, out, program=[slowed.__file__])
    killed = launch(3, stoppable, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while killed.poll() is None and lines(out) < 4:
        time.sleep(0.02)
    kill_with_ranks(killed)
    kept = lines(out)
    assert 4 <= kept < total, "killed too late to prove anything"
    with sorted(out.glob("*.jsonl"))[0].open("ab") as torn:
        torn.write(b'{"_id": "torn')

    again = launch(2, command(tiny_folder, data, out), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors[-2000:]
    assert f"of {total} were done before" in errors
    assert records(out) == records(tmp_path / "one")
    assert not list(out.glob("*rank*"))
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (out, tmp_path / "one")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_the_others_tell_of_a_killed_rank_and_the_run_resumes_alone(tiny_folder, tmp_path):
    data = write_longbench(tmp_path / "data", examples=6)
    out = tmp_path / "run"
    arguments = command(tiny_folder, data, out)
    code = "import sys, e2bench.runs.processes as p; p.SILENCE_S = 8; import slowed; slowed.slow_down('longbench'); "
    shorter = ["-c", code + "from e2bench.cli import main; main()"]
    port, ranks = str(free_port()), []
    for rank in range(2):  # as srun starts them: no agent that would end the other
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables |= {"PAUSE_S": "0.25", "PYTHONPATH": str(Path(slowed.__file__).parent)}
        line = [sys.executable, *shorter, *arguments[2:]]
        ranks.append(subprocess.Popen(line, env=environment(**variables), stderr=subprocess.PIPE, text=True))
    while ranks[1].poll() is None and not list(out.glob("*rank1*")):
        time.sleep(0.02)
    ranks[1].kill()
    ranks[1].communicate()
    _, errors = ranks[0].communicate(timeout=200)
    assert ranks[0].returncode == 1
    assert "process 1 of 2 is gone" in errors.splitlines()[-1]
    done = subprocess.run([sys.executable, *arguments], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {name: len(rows) for name, rows in records(out).items()} == {f"{task}.jsonl": 6 for task in TASKS}


def test_numbers_are_claimed_once_each_whoever_asks():
    ranks, got = joined(3), []
    threads = [threading.Thread(target=lambda p=p: got.extend(p.claim("work") for _ in range(20))) for p in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(60))


def test_a_second_run_with_the_same_title_claims_from_the_beginning():
    first, second = joined(2)
    for _ in range(2):
        names = {rank.round("ppl") for rank in (first, second)}
        assert len(names) == 1
        assert [first.claim(*names), second.claim(*names)] == [0, 1]


def test_what_rank_0_shares_reaches_all_and_names_may_come_again():
    first, second = joined(2)
    for value in ("[[0, 1]]", "[[2]]"):
        assert first.share("plan", lambda value=value: value) == value
        assert second.share("plan", lambda: "never made") == value
    assert Processes().share("plan", lambda: "alone") == "alone"


def test_a_silent_rank_is_named_and_a_beating_one_is_waited_for(monkeypatch):
    monkeypatch.setattr(processes, "SILENCE_S", 1.0)
    first, second = joined(2)
    beats = threading.Thread(target=lambda: [(second.store.add("heart/1", 1), time.sleep(0.05)) for _ in range(40)])
    beats.start()
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"process 1 of 2 is gone.*the same command again"):
        first.barrier("finished")
    assert time.monotonic() - began > 2.0
    beats.join()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "3"}, (2, 3)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, (1, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),  # in the batch script itself, outside srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
    ],
)
def test_rank_and_world_are_the_launchers(monkeypatch, variables, expected):
    for name in (*VARIABLES, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.launched() == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[007-009,012],cpu1", "gpu007"),
        ("n1,n2", "n1"),
        ("host", "host"),
        ("r1-n[3,5]-ib", "r1-n3-ib"),
        ("a.b", "a.b"),
    ],
)
def test_the_first_node_of_a_slurm_list_is_found(nodes, first):
    assert first_node(nodes) == first
