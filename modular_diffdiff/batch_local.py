"""A batch on one machine: worker processes that the command watches, each with its own copy of the model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from .batch_process import Process, ProcessDiedError
from .batch_work import Job, Outcome, Plan, Worker
from .ledger import ATTEMPTS, JobError
from .manifest import Row


@dataclass
class Desk:
    """A worker, and what it is at.

    Attributes:
        place: What is special about its environment.
        deaths: How many workers have died at these rows.
    """

    process: Process
    place: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    deaths: int = 0

    def give(self, rows: list[Row]) -> None:
        self.rows = rows
        self.process.start("do", rows)


@dataclass
class LocalEngine:
    """Runs a job on this machine.

    Attributes:
        count: How many workers; by default one for each accelerator, or one.
        timeout: Seconds after which nothing has happened for too long.
    """

    job: Job
    count: int | None
    timeout: float
    desks: list[Desk] = field(default_factory=list)

    def plan(self, *asked: Any) -> Plan:
        """As `Worker.plan`, in the first worker: it needs its libraries anyway."""
        first = self._open({})
        try:
            plan = first.process.call("plan", *asked)
            places = first.process.call("places")
        except ProcessDiedError as error:
            raise JobError(f"The worker that checked the manifest ended {error}.") from error
        if len(places) > 1:  # it sees all of the accelerators
            self.close()
        self._places = itertools.cycle(places)
        self._count = self.count or len(places)
        return plan

    def run(self, plan: Plan) -> Iterator[Outcome]:
        """Each row as it is settled.

        Raises:
            JobError: If the job cannot go on.
        """
        job = self.job
        calls = (rows for part, pipeline in plan.steps() for rows in part.rows(job.manifest, pipeline, job.batch_size))
        idle, busy = list(self.desks), {}
        while True:
            while len(busy) < self._count and (rows := next(calls, None)) is not None:
                desk = idle.pop() if idle else self._open(next(self._places))
                desk.give(rows)
                busy[desk.process.pipe] = desk
            if not busy:
                return
            ready = wait(list(busy), self.timeout)
            if not ready:
                raise JobError(f"No row ended for {self.timeout:g} seconds; {_waiting_for(busy.values())}.")
            for pipe in ready:
                desk = busy.pop(pipe)
                try:
                    yield from desk.process.receive()
                    desk.deaths = 0
                    idle.append(desk)
                except ProcessDiedError as error:
                    self._replace(desk, str(error))
                    busy[desk.process.pipe] = desk

    def _replace(self, desk: Desk, how: str) -> None:
        """Another worker for one that has died, at the same rows; the ledger ends what kills each of them."""
        desk.deaths += 1
        if desk.deaths > ATTEMPTS * (len(desk.rows) + 1):
            raise JobError(f"{desk.deaths} workers ended before they began a row, the last one {how}.")
        desk.process.end()
        desk.process = self._start(desk.place)
        desk.give(desk.rows)

    def _open(self, place: dict[str, str]) -> Desk:
        self.desks.append(Desk(self._start(place), place))
        return self.desks[-1]

    def _start(self, place: dict[str, str]) -> Process:
        return Process(Worker, self.job, environment=place)

    def close(self) -> None:
        while self.desks:
            self.desks.pop().process.end()


def _waiting_for(desks: Iterable[Desk]) -> str:
    return f"the workers were at {', '.join(row.title for desk in desks for row in desk.rows)}"
