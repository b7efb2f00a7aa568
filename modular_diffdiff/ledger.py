"""The folder of a batch: pictures and videos, and a small file for each row that says how far it is.

`ledger/ID.json` holds the state of a row:

- no file: the row has not begun;
- *begun*: a worker has it, for the n-th time. The mark is on the disk before the row's pictures are decoded, so that
  whoever finds it knows that n attempts did not end: the worker died, or the machine did. After `ATTEMPTS` of them the
  row is failed, by whoever comes next;
- *done*: its files are on the disk;
- *failed*: it has been tried, and an error is its result.

Each state is one rename of a whole file, after fsync; *done* comes after the same of the row's files. So at any moment
a row is in one of these states, and a process that dies leaves the last one. Two workers that do the same row, as when
a cluster takes one for dead that is not, write the same bytes over each other.

A state counts only with the fingerprint that it was reached with: with other files, settings or versions, a row is as
one that has not begun.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .loading import UserError


LOCK = ".lock"
ATTEMPTS = 3
BEGUN, DONE, FAILED = "begun", "done", "failed"
IMAGES, MAPS, VIDEOS = "images", "maps", "videos"
SUFFIXES = {IMAGES: ".png", MAPS: ".png", VIDEOS: ".mp4"}


class JobError(Exception):
    """Why a job cannot go on: it is about no single row."""


@dataclass(frozen=True)
class State:
    """How far a row is.

    Attributes:
        status: `BEGUN`, `DONE` or `FAILED`.
        fingerprint: Of all that decides the row's files.
        attempts: How often it has begun.
        worker: Who has it, or had it: host and process.
        run: Which run of a command that was in.
        seed: Of the noise.
        error: Why it failed.
        kind: `IMAGES` or `VIDEOS`, where its result is.
        sha256: Of that file.
        seconds: How long it took; of rows that shared a call, each its part.
        batch: How many rows shared the call of the model.
        warnings: What was said about it.
    """

    status: str
    fingerprint: str
    attempts: int
    worker: str
    run: str
    seed: int | None = None
    error: str | None = None
    kind: str = IMAGES
    sha256: str | None = None
    seconds: float | None = None
    batch: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """A batch's folder, which may be on storage that several machines share."""

    folder: Path

    def open(self) -> None:
        """Makes the folder, or takes up an earlier batch in it.

        Raises:
            UserError: If it holds other things, or cannot be written to.
        """
        try:
            if self.folder.is_dir() and not self._states.is_dir() and any(self.folder.iterdir()):
                raise UserError(f"--out {str(self.folder)!r} holds other files; it takes a new folder, or a batch's.")
            self._partials.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {str(self.folder)!r} cannot be written to: {error.strerror}.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands out. The lock is the operating system's: it ends with the process.

        Raises:
            UserError: If another command has it.
        """
        from filelock import FileLock, Timeout

        try:
            with FileLock(self._states / LOCK, timeout=0):
                for partial in self._partials.iterdir():  # of workers that were killed
                    partial.unlink(missing_ok=True)
                yield
        except Timeout as error:
            raise UserError(f"--out {str(self.folder)!r} is another command's that runs now.") from error

    def discard(self) -> None:
        """Removes the folder again if no row has begun, for the one that has it locked."""
        if not set(os.listdir(self._states)) <= {self._partials.name, LOCK}:
            return
        (self._states / LOCK).unlink()
        for folder in (self._partials, self._states, self.folder):
            with suppress(OSError):  # it holds other files
                folder.rmdir()

    @property
    def _states(self) -> Path:
        return self.folder / "ledger"

    @property
    def _partials(self) -> Path:
        return self._states / ".partial"

    def _state_of(self, row_id: str) -> Path:
        return self._states / f"{row_id}.json"

    def file_of(self, row_id: str, kind: str = IMAGES) -> Path:
        return self.folder / kind / f"{row_id}{SUFFIXES[kind]}"

    def read(self, row_id: str, fingerprint: str | None = None) -> State | None:
        """A row's state, None before it has begun, or where it was reached with another fingerprint."""
        try:
            state = State(**json.loads(self._state_of(row_id).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):  # of another version, or damaged
            return None
        return state if fingerprint in (None, state.fingerprint) else None

    def is_settled(self, row_id: str, state: State | None, batch_size: int, kinds: tuple[str, ...]) -> bool:
        """Whether a state is the row's last.

        Args:
            state: As `read` gives it.
            batch_size: How many rows may share a call: what was made with more is made anew.
            kinds: The files that it must have.
        """
        if state is None or state.status == BEGUN:
            return False
        if state.status == FAILED:
            return True
        return state.batch <= batch_size and all(self.file_of(row_id, kind).is_file() for kind in kinds)

    def write(self, row_id: str, state: State) -> None:
        self.write_file(self._state_of(row_id), json.dumps(vars(state)).encode())

    def forget(self, row_id: str) -> None:
        """Takes a row for one that has not begun."""
        self._state_of(row_id).unlink(missing_ok=True)

    def withdraw(self, row_ids: Iterable[str], run: str) -> None:
        """Takes back that rows have begun in a run that was stopped: they are not to blame."""
        for row_id, state in self.begun(row_ids, run):
            if state.attempts > 1:
                self.write(row_id, replace(state, attempts=state.attempts - 1))
            else:
                self.forget(row_id)

    def begun(self, row_ids: Iterable[str], run: str) -> Iterator[tuple[str, State]]:
        """Those of these rows that a run has begun, and that have not ended."""
        for row_id in row_ids:
            state = self.read(row_id)
            if state is not None and state.status == BEGUN and state.run == run:
                yield row_id, state

    def write_file(self, path: Path, data: bytes) -> None:
        """Puts a file on the disk, whole or not at all.

        Raises:
            JobError: If there is no room for it, or it cannot be written for another reason.
        """
        with self.writing(path) as partial:
            partial.write_bytes(data)

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """The same for a file that is written piece by piece, to the path that this gives."""
        partial = self._partials / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            yield partial
            _sync(partial)
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                for folder in path.parents:
                    _sync(folder)
                    if folder == self.folder:
                        break
            os.replace(partial, path)
            _sync(path.parent)
        except OSError as error:
            raise JobError(f"{str(path)!r} cannot be written: {error.strerror or error}.") from error
        finally:
            partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until what a file or a folder holds is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # network file systems sync no folders
            raise
    finally:
        os.close(opened)
