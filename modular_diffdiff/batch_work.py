"""What a batch's workers do, whichever engine runs them: look what is to be done, and do it, row by row."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import secrets
import time
from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from . import asking
from .blocks import diffdiff_files
from .editing import Clip
from .ledger import ATTEMPTS, BEGUN, DONE, FAILED, IMAGES, VIDEOS, JobError, Ledger, State
from .loading import UserError
from .manifest import COLUMNS, Embedded, Manifest, Row


NOT_NOW = 255  # in the place of a pipeline's number: the job is limited
SLICE = 64  # rows that are read, and sorted into calls, together
POISON = (
    f"It began {ATTEMPTS} times and never ended: each time its worker died, or the machine. Out of memory, perhaps."
)


@dataclass(frozen=True)
class Made:
    """What an editor makes of a row.

    Attributes:
        files: PNGs, by `IMAGES` and `MAPS`, or a video, by `VIDEOS`.
        batch: How many rows shared the call of the model.
        warnings: What its user should know.
    """

    files: dict[str, bytes]
    batch: int = 1
    warnings: tuple[str, ...] = ()


class Editor(Protocol):
    """Makes pictures of rows. A job's editor goes to each worker as a copy, which loads models there.

    Attributes:
        device: Where models run, None for an accelerator where there is one.
    """

    device: str | None = "cpu"

    def check(self, row: Row) -> Hashable:
        """Refuses what can be seen without loading a model, and says which pipeline the row needs.

        Raises:
            UserError: Naming the column, as the command line's option.
        """

    def places(self) -> list[dict[str, str]]:
        """The environment of a worker, for each accelerator of this machine; one of a machine without."""
        return [{}]

    def load(self, row: Row) -> None:
        """Loads what a row needs, if it is not what the last row needed."""

    def facts(self, row: Row) -> Any:
        """What decides the pixels and is not in the manifest, as JSON takes it."""

    def call_of(self, row: Row) -> Hashable:
        """What rows must have in common to share a call of the model; None for those that share none."""

    def edit(self, rows: list[Row]) -> list[Made]:
        """The files of rows, in their order."""


@dataclass(frozen=True)
class Job:
    """A batch, as its workers know it.

    Attributes:
        batch_size: How many rows may share a call.
        kinds: The files of each row that edits a picture.
        run: A name for this run of the job.
    """

    manifest: Manifest
    ledger: Ledger
    editor: Editor
    batch_size: int = 1
    kinds: tuple[str, ...] = (IMAGES,)
    run: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Slice:
    """Some rows of the manifest, one after the other.

    Attributes:
        place: Of the first.
        number: Of the first.
        pipelines: For each, 0 if it is settled, else the number of the pipeline that it needs, from 1, or `NOT_NOW`.
        calls: For each, a number that it shares with those that may share a call with it; 0 if it goes alone.
    """

    place: int
    number: int
    pipelines: bytearray = field(default_factory=bytearray)
    calls: array = field(default_factory=lambda: array("Q"))

    def rows(self, manifest: Manifest, pipeline: int, batch_size: int) -> Iterator[list[Row]]:
        """What is to be done with a pipeline, sorted into calls."""
        waiting: dict[int, list[Row]] = {}
        rows = itertools.islice(manifest.rows(self.place, self.number), len(self.pipelines))
        for (_, row), number, call in zip(rows, self.pipelines, self.calls, strict=True):
            if number == pipeline:
                waiting.setdefault(call, []).append(row)
                if not call or len(waiting[call]) == batch_size:
                    yield waiting.pop(call)
        yield from waiting.values()


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        total: How many rows there are.
        done: How many of them are done before the job begins.
        failed: How many of them have failed then, and are left so.
        slices: All rows, in order.
    """

    total: int
    done: int
    failed: int
    slices: list[Slice]

    @property
    def wanted(self) -> int:
        left = sum(part.pipelines.count(0) + part.pipelines.count(NOT_NOW) for part in self.slices)
        return self.total - left

    def pipelines(self) -> Iterator[int]:
        """As `Slice.pipelines`, of all rows."""
        return itertools.chain.from_iterable(part.pipelines for part in self.slices)

    def steps(self) -> Iterator[tuple[Slice, int]]:
        """The slices that want something of a pipeline, one pipeline after the other: each is loaded once."""
        for pipeline in sorted(set(self.pipelines()) - {0, NOT_NOW}):
            yield from ((part, pipeline) for part in self.slices if pipeline in part.pipelines)


@dataclass(frozen=True)
class Outcome:
    """A row that has been settled."""

    id: str
    status: str


@dataclass
class Worker:
    """Does the rows of a job."""

    job: Job
    name: str = field(default_factory=lambda: f"{platform.node()}:{os.getpid()}")

    def plan(self, retry_errors: bool, limit: int | None) -> Plan:
        """Checks the manifest whole, and looks which rows are done; no model is loaded.

        Raises:
            ManifestError: If rows cannot be used.
        """
        job, counts, slices, pipelines, wanted = self.job, {DONE: 0, FAILED: 0}, [], {}, 0
        for place, row, pipeline in job.manifest.check(job.editor.check):
            if row.number % SLICE == 1:
                slices.append(Slice(place, row.number))
            state = job.ledger.read(row.id)
            if state is not None and state.status != BEGUN:
                state = job.ledger.read(row.id, self.fingerprint(row))
            if retry_errors and state is not None and state.status == FAILED:
                job.ledger.forget(row.id)
                state = None
            number, call = NOT_NOW, None
            if job.ledger.is_settled(row.id, state, job.batch_size, self.kinds(row)):
                counts[state.status] += 1
                number = 0
            elif limit is None or wanted < limit:
                wanted += 1
                number = pipelines.setdefault(pipeline, len(pipelines) + 1)
                call = job.editor.call_of(row) if job.batch_size > 1 else None
            slices[-1].pipelines.append(number)
            slices[-1].calls.append(0 if call is None else hash(call) % 2**64 or 1)
        return Plan(sum(len(part.pipelines) for part in slices), counts[DONE], counts[FAILED], slices)

    def places(self) -> list[dict[str, str]]:
        """As `Editor.places`."""
        return self.job.editor.places()

    def do(self, rows: list[Row]) -> list[Outcome]:
        """Settles rows that may share a call. The ledger is asked again: somebody else may have settled or begun them.

        Raises:
            JobError: If the job cannot go on.
        """
        job, states = self.job, {}
        try:
            job.editor.load(rows[0])
        except JobError:
            raise
        except Exception as error:
            raise JobError(_speak(error)) from error
        fresh, begun = [], []
        for row in rows:
            state = State(BEGUN, self.fingerprint(row), 1, self.name, job.run, row.params["seed"])
            before = job.ledger.read(row.id, state.fingerprint)
            if job.ledger.is_settled(row.id, before, job.batch_size, self.kinds(row)):
                states[row.id] = replace(before, run=job.run)
                job.ledger.write(row.id, states[row.id])
            elif before is None or before.status == DONE:  # done with too many others, or without a file
                fresh.append((row, state))
            elif before.attempts >= ATTEMPTS:
                states[row.id] = replace(before, status=FAILED, error=POISON)
                job.ledger.write(row.id, states[row.id])
            else:  # it goes alone: it may end the worker of its neighbours again
                begun.append([(row, replace(state, attempts=before.attempts + 1))])
        for together in [fresh, *begun]:
            states |= self._settle(together)
        return [Outcome(row.id, states[row.id].status) for row in rows]

    def _settle(self, begun: list[tuple[Row, State]]) -> dict[str, State]:
        """Edits rows, and puts what comes of it on the disk."""
        ledger, states = self.job.ledger, {}
        for row, state in begun:
            ledger.write(row.id, state)
        rows, start = [row for row, _ in begun], time.perf_counter()
        try:
            made = self.job.editor.edit(rows) if rows else []
        except JobError:
            raise
        except Exception as error:
            if len(rows) > 1:  # one of them may be bad
                return {row_id: state for one in begun for row_id, state in self._settle([one]).items()}
            seconds = time.perf_counter() - start
            states[rows[0].id] = replace(begun[0][1], status=FAILED, error=_speak(error), seconds=seconds)
        else:
            seconds = (time.perf_counter() - start) / max(len(rows), 1)
            for (row, state), result in zip(begun, made, strict=True):
                edited = self.kinds(row)[0]
                for kind, data in result.files.items():
                    ledger.write_file(ledger.file_of(row.id, kind), data)
                states[row.id] = replace(
                    state,
                    status=DONE,
                    kind=edited,
                    sha256=hashlib.sha256(result.files[edited]).hexdigest(),
                    seconds=seconds,
                    batch=result.batch,
                    warnings=result.warnings,
                )
        for row_id, state in states.items():
            ledger.write(row_id, state)
        return states

    def kinds(self, row: Row) -> tuple[str, ...]:
        """The files of a row, its result's first."""
        return tuple(VIDEOS if kind == IMAGES and row.kind is Clip else kind for kind in self.job.kinds)

    def fingerprint(self, row: Row) -> str:
        """SHA-256 of all that decides a row's files."""
        pictures = {name: _identify(picture) for name, picture in row.pictures().items()}
        pictures["region"] = [
            [_identify(where) if asking.is_picture(where) else where, prompt]
            for where, prompt in asking.split_regions(row.params)
        ]
        params = {name: row.params[name] for name in COLUMNS} | pictures
        told = {"prompt": row.prompt, "params": params, "facts": self.job.editor.facts(row)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _identify(picture: str | Embedded) -> list[str | None]:
    """A file by its name and its content, None where it cannot be read; a URL by itself: it is not fetched for this."""
    if isinstance(picture, Embedded):
        return [picture.name, hashlib.sha256(picture.data).hexdigest()]
    if diffdiff_files.is_url(picture):
        return [picture]
    try:
        with open(picture, "rb") as file:
            return [os.path.basename(picture), hashlib.file_digest(file, "sha256").hexdigest()]
    except OSError:
        return [os.path.basename(picture), None]


def _speak(error: Exception) -> str:
    """An error in a line, with its type where its message was not written for users."""
    said = " ".join(str(error).split())
    return said if isinstance(error, (UserError, FloatingPointError)) else f"{type(error).__name__}: {said}"
