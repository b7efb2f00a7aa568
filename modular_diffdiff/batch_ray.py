"""A batch on a Ray cluster: `ray.data` reads the manifest, actors with a copy of the model do the rows.

Ray starts an actor anew when it has died, and gives it again what it had: the ledger, which each actor asks before each
row, sees to it that nothing is done twice, and that a row does not kill actors for ever. Ray's own checkpoints are not
used: they know a row by its key alone, not by what is asked of it.

The command speaks to Ray through a process, the driver: when that is killed, Ray ends all that it has started.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import queue
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import ray
import ray.data

from . import batch_process
from .batch_process import Process, ProcessDiedError
from .batch_work import Job, Outcome, Plan, Worker
from .ledger import JobError
from .loading import UserError


PATIENCE = 30.0  # seconds without a row, after which it is looked whether machines have died
CONNECTING = 120  # seconds that Ray may take to answer at all
SPARE = 1  # CPUs that no actor has: with none, jobs hung after a machine had died
LOST = "lost"  # what the driver says when machines have died and nothing goes on
QUIET = batch_process.QUIET | {"RAY_USAGE_STATS_ENABLED": "0"}


@dataclass
class RayEngine:
    """Runs a job on the cluster at RAY_ADDRESS, or on this machine.

    Attributes:
        count: How many actors; by default one for each GPU, or as many as there are CPUs to spare.
        timeout: Seconds after which nothing has happened for too long.
    """

    job: Job
    count: int | None
    timeout: float
    _driver: Process | None = None
    _probe: Probe | None = None

    def plan(self, *asked: Any) -> Plan:
        """As `Worker.plan`, where an actor could run: there are its GPU and its models."""
        self._probe = Probe.write(self.job)
        return self._ask(lambda driver: driver.call("plan", self.count, *asked))

    def run(self, plan: Plan) -> Iterator[Outcome]:
        """Each row as it is settled.

        Raises:
            JobError: If the job cannot go on.
        """
        settled: set[str] = set()
        self._driver.start("run", plan)
        while (answer := self._ask(Process.receive)) is not None:
            if answer == LOST:
                self._start_again()
                self._driver.start("run", plan)
                continue
            new = [outcome for outcome in answer if outcome.id not in settled]
            settled.update(outcome.id for outcome in new)
            yield from new
        self._ask(lambda driver: driver.call("close"))

    def _start_again(self) -> None:
        """Takes what is left after a machine's death: Ray waits for the actors that it cannot place any more."""
        self._end_driver()
        self.job.ledger.withdraw(self.job.manifest.ids(), self.job.run)
        self._ask(lambda driver: driver.call("fit"))

    def _ask(self, ask: Callable[[Process], Any]) -> Any:
        try:
            if self._driver is None:
                nowhere = subprocess.DEVNULL  # Ray has a folder for its logs
                self._driver = Process(Driver, self._probe, self.timeout, environment=QUIET, stderr=nowhere)
                self._driver.start("nodes")
                if not self._driver.pipe.poll(CONNECTING):
                    raise JobError(f"Ray does not answer within {CONNECTING} seconds, at {_address()!r}.")
                self._driver.receive()
            return ask(self._driver)
        except ProcessDiedError as error:
            raise JobError(f"The process that speaks to Ray ended {error}.") from error

    def _end_driver(self) -> None:
        if self._driver is not None:
            self._driver.end()
            self._driver = None

    def close(self) -> None:
        self._end_driver()
        if self._probe is not None:
            self._probe.delete()


@dataclass(frozen=True)
class Probe:
    """A file that every machine must see where the command has written it."""

    job: Job
    name: str

    @classmethod
    def write(cls, job: Job) -> Probe:
        probe = cls(job, f".probe-{secrets.token_hex(8)}")
        job.ledger.write_file(job.ledger.folder / probe.name, probe.name.encode())
        return probe

    def check(self) -> None:
        """Refuses a machine with storage of its own.

        Raises:
            UserError: If the folder or the manifest is another one here, or none.
        """
        path = self.job.ledger.folder / self.name
        if not (path.is_file() and path.read_text() == self.name and self.job.manifest.path.is_file()):
            folder, manifest = self.job.ledger.folder, self.job.manifest.path
            raise UserError(
                f"{ray.util.get_node_ip_address()} does not see {str(folder)!r} or {str(manifest)!r}: MANIFEST and DIR "
                "must be on storage that all machines of the cluster share, at the same path."
            )

    def delete(self) -> None:
        (self.job.ledger.folder / self.name).unlink(missing_ok=True)


@dataclass
class Driver:
    """What speaks to Ray."""

    probe: Probe
    timeout: float
    job: Job = field(init=False)

    def __post_init__(self):
        self.job = self.probe.job
        address = _address()
        local = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address, log_to_driver=False, runtime_env={"env_vars": QUIET}, **local)
        except ConnectionError as error:
            raise JobError(f"Ray cannot be reached at {address!r}: {error}") from error
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self._nodes, self._there = count_nodes(), ray.cluster_resources()
        with_gpu = self.job.editor.device != "cpu" and self._there.get("GPU", 0) > 0
        threads = self.job.manifest.defaults["threads"]
        self._each = {"num_cpus": 1, "num_gpus": 1} if with_gpu else {"num_cpus": threads}

    def plan(self, count: int | None, *asked: Any) -> Plan:
        most = self._room()
        if not 1 <= (count or most) <= most:
            raise UserError(
                f"--workers {count or 1} are too many: {self._wants(count or 1)}, and it needs a CPU itself."
            )
        self._count = count or most
        task = ray.remote(_make_plan).options(**self._each, max_retries=0).remote(self.probe, asked)
        try:
            return ray.get(task, timeout=self.timeout)
        except ray.exceptions.GetTimeoutError:
            raise JobError(f"The manifest was not checked in {self.timeout:g} seconds: {self._wants(1)}.") from None
        except ray.exceptions.RayTaskError as error:
            raise (
                error.cause if isinstance(error.cause, (UserError, JobError)) else JobError(str(error.cause))
            ) from None
        except ray.exceptions.RayError as error:
            raise JobError(f"The manifest could not be checked: {error}") from None

    def fit(self) -> None:
        """Takes as many actors as there is room for.

        Raises:
            JobError: If there is room for none.
        """
        self._count = self._room()
        if self._count < 1:
            raise JobError(f"Machines have died, and those that are left have no room: {self._wants(1)}.")

    def nodes(self) -> int:
        return self._nodes

    def _room(self) -> int:
        most = (int(self._there.get("CPU", 0)) - SPARE) // self._each["num_cpus"]
        return min(most, int(self._there.get("GPU", 0))) if "num_gpus" in self._each else most

    def _wants(self, count: int) -> str:
        has = f"{count_nodes()} nodes, {self._there.get('CPU', 0):g} CPUs and {self._there.get('GPU', 0):g} GPUs"
        each = " and ".join(f"{number} {name.removeprefix('num_')}" for name, number in self._each.items())
        return f"Ray has {has}, and the job wants {count} times {each}"

    def run(self, plan: Plan) -> Iterator[list[Outcome] | str]:
        """Each call's outcomes, or `LOST`."""
        answers: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._do, args=(plan, answers), daemon=True).start()
        silent = 0.0
        while True:
            patience = min(PATIENCE, self.timeout - silent)
            try:
                answer = answers.get(timeout=patience)
            except queue.Empty:
                silent += patience
                if silent >= self.timeout:
                    begun = [row_id for row_id, _ in self.job.ledger.begun(self.job.manifest.ids(), self.job.run)]
                    raise JobError(
                        f"No row ended for {self.timeout:g} seconds. {self._wants(self._count)}; its rows that have "
                        f"begun are {', '.join(begun) or 'none'}."
                    ) from None
                if count_nodes() < self._nodes:
                    yield LOST
                continue
            silent = 0.0
            if answer is None:
                return
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def _do(self, plan: Plan, answers: queue.SimpleQueue) -> None:
        """Puts each call's outcomes into a queue, at the end None, or what ended it."""
        try:
            steps = [{"step": pickle.dumps(step)} for step in plan.steps()]
            if steps:
                calls = ray.data.from_items(steps, override_num_blocks=len(steps)).flat_map(
                    Reader(self.job), num_cpus=SPARE, compute=ray.data.TaskPoolStrategy(size=1)
                )
                calls.context.target_max_block_size = 1  # a call is a block: what is done is seen at once
                done = calls.map_batches(
                    Actor,
                    fn_constructor_args=(self.probe,),
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(size=self._count, max_tasks_in_flight_per_actor=2),
                    **self._each,
                )
                for row in done.iter_rows():
                    answers.put(pickle.loads(row["answer"]))
            answers.put(None)
        except Exception as error:
            answers.put(JobError(f"Ray cannot go on: {' '.join(str(error).split())[:1000]}"))

    def close(self) -> None:
        ray.shutdown()


def _address() -> str:
    return os.environ.get("RAY_ADDRESS", "local")


def count_nodes() -> int:
    """The machines of the cluster that are alive."""
    return sum(node["Alive"] for node in ray.nodes())


def _make_plan(probe: Probe, asked: tuple) -> Plan:
    probe.check()
    return Worker(probe.job).plan(*asked)


@dataclass(frozen=True)
class Reader:
    """Reads a step of the plan, a slice of the manifest, into calls."""

    job: Job

    def __call__(self, item: dict[str, bytes]) -> list[dict[str, bytes]]:
        part, pipeline = pickle.loads(item["step"])
        return [{"call": pickle.dumps(rows)} for rows in part.rows(self.job.manifest, pipeline, self.job.batch_size)]


class Actor:
    """A worker on the cluster."""

    def __init__(self, probe: Probe):
        node = ray.get_runtime_context().get_node_id()[:8]
        self.probe, self.worker = probe, Worker(probe.job, f"{platform.node()}/{node}:{os.getpid()}")

    def __call__(self, batch: Any) -> Any:
        return pyarrow.table({"answer": [pickle.dumps(self.answer(call)) for call in batch["call"].to_pylist()]})

    def answer(self, call: bytes) -> list[Outcome] | JobError:
        try:
            self.probe.check()
            return self.worker.do(pickle.loads(call))
        except (UserError, JobError) as error:  # if it were raised, Ray would try again
            return JobError(str(error))
