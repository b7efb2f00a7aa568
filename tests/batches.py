"""What the tests of batches share: manifests, runs without a model, and what they leave behind."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from pyarrow import parquet

from modular_diffdiff.batch import Progress, run_batch
from modular_diffdiff.batch_work import Job, Outcome, Plan, Worker
from modular_diffdiff.ledger import Ledger

from .noop import NoOp, content


ROOT = Path(__file__).parents[1]


def write(rows: list[dict] | int, path: str = "rows.jsonl") -> str:
    """A manifest of these rows, or of so many."""
    if isinstance(rows, int):
        rows = [{"id": f"{number:05}"} for number in range(rows)]
    rows = [{"image": "photo.png", "map": "photo.png", "prompt": "a pear", "seed": 1, **row} for row in rows]
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def run(manifest: str = "rows.jsonl", **options) -> Progress:
    return run_batch(manifest, "out", editor=NoOp(Path("rows.log").absolute()), **options)


class Here:
    """An engine of one worker in this process, for tests of what rows become: other processes import torch first."""

    def __init__(self, job: Job):
        self.worker = Worker(job)

    def plan(self, *asked) -> Plan:
        return self.worker.plan(*asked)

    def run(self, plan: Plan) -> Iterator[Outcome]:
        job = self.worker.job
        for part, pipeline in plan.steps():
            for rows in part.rows(job.manifest, pipeline, job.batch_size):
                yield from self.worker.do(rows)

    def close(self) -> None:
        pass


def table() -> dict[str, dict]:
    """The table by id; both forms of it must say the same."""
    rows = parquet.read_table("out/results.parquet").to_pylist()
    assert rows == [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    return {row["id"]: row for row in rows}


def statuses() -> dict[str, str]:
    return {row_id: row["status"] for row_id, row in table().items()}


def edits() -> collections.Counter:
    """How often each row was edited."""
    log = Path("rows.log")
    return collections.Counter(log.read_text().splitlines() if log.exists() else ())


def start(*options: str, engine: str = "local", **how) -> subprocess.Popen:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "tests.noop", "rows.jsonl", "out", engine, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def wait_for_edits(more: int = 1) -> None:
    before = edits().total()
    wait_for(lambda: edits().total() >= before + more)


def check_kills(engine: str, rows: int, commands: int, workers: int) -> None:
    """Kills so many commands, and before each of them so many of its workers, at random moments."""
    write(rows)
    draw, ledger = random.Random(0), Ledger(Path("out").absolute())

    def finished() -> dict[str, int]:
        """How often the rows that are done now were edited; their files must be whole."""
        counts = edits()
        states = {row_id: ledger.read(row_id) for row_id in counts}
        done = [row_id for row_id, state in states.items() if state is not None and state.status == "done"]
        assert all(ledger.file_of(row_id).read_bytes() == content(row_id, 1) for row_id in done)
        return {row_id: counts[row_id] for row_id in done}

    before = {}
    for _ in range(commands):
        command = start("seconds=0.02", engine=engine)
        for _ in range(workers):
            wait_for_edits(3)  # two of another row than the last worker's
            time.sleep(draw.uniform(0, 0.2))
            os.kill(wait_for(lambda: worker_of(ledger)), signal.SIGKILL)
        wait_for_edits(3)
        time.sleep(draw.uniform(0, 0.2))
        command.kill()
        command.communicate()
        now = finished()
        assert before.items() <= now.items()
        before = now
    command = start(engine=engine)
    said, errors = command.communicate(timeout=100)
    assert command.returncode == 0, said + errors
    assert before.items() <= finished().items()
    assert set(statuses().values()) == {"done"}
    assert len(finished()) == len(table()) == rows
    assert edits().total() <= rows + commands * (workers + 1)  # those that were in progress
    assert not list(Path("out/ledger/.partial").iterdir())


def worker_of(ledger: Ledger) -> int | None:
    """The process of a worker that lives, and has a row."""
    states = filter(None, map(ledger.read, edits()))
    workers = {int(state.worker.split(":")[1]) for state in states if state.status == "begun"}
    return next(filter(psutil.pid_exists, workers), None)
