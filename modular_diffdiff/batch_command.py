"""`modular-diffdiff batch`: what it shows while it runs, and how it ends."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from tqdm import tqdm

from . import batch
from .ledger import JobError
from .manifest import ManifestError


BAR = "{percentage:3.0f}% |{bar:20}| {n_fmt} of {total_fmt} rows{postfix}, {rate_fmt}, {remaining} left"
SELDOM = 30  # seconds between two lines of progress in a file


class StoppedError(BaseException):
    """Somebody ends the command, by a signal of this number."""


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into an exception; a second SIGINT ends the process at once."""

    def stop(number: int, _: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
        raise StoppedError(number)

    handled = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in handled.items():
            signal.signal(name, handler)


class Lines:
    """Stderr that is a file: a line for each state of a bar, which would overwrite the last one on a terminal."""

    def write(self, text: str) -> None:
        if text.strip():
            typer.echo(text.strip(), err=True)

    def flush(self) -> None:
        sys.stderr.flush()


class Bar:
    """Progress on stderr: done, failed, edits a second, time left."""

    def __init__(self):
        self.progress: batch.Progress | None = None
        self._bar: tqdm | None = None

    def show(self, progress: batch.Progress) -> None:
        if self._bar is None:
            typer.echo(f"{progress.wanted:,} of {progress.total:,} rows to do.", err=True)
            how = {"mininterval": 0.1} if sys.stderr.isatty() else {"mininterval": SELDOM, "file": Lines()}
            self._bar = tqdm(total=progress.wanted, unit=" edits", bar_format=BAR, **how)
        self._bar.set_postfix_str(f"{progress.done:,} done, {progress.failed:,} failed", refresh=False)
        self._bar.update(progress.settled - self._bar.n)
        self.progress = progress

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def account(self) -> str:
        told = self.progress
        return f"{told.done:,} of {told.total:,} rows done, {told.failed:,} failed" if told else "No row was begun"


def run(manifest: Path, out: Path, **asked: Any) -> None:
    """Runs a batch, and ends the command with its exit code.

    Raises:
        UserError: As `batch.run_batch`.
    """
    bar, code = Bar(), 0
    try:
        with _stopped_by_signals():
            batch.run_batch(manifest, out, on_progress=bar.show, **asked)
        said = None
    except ManifestError as error:
        said, code = "\n".join(f"Error: {line}" for line in str(error).splitlines()), 2
    except JobError as error:
        said, code = f"Error: {error}\n{bar.account}; the same command goes on.", 1
    except StoppedError as stopped:
        said, code = f"Stopped. {bar.account}; the same command goes on.", 128 + stopped.args[0]
    finally:
        bar.close()
    if said is not None:
        typer.echo(said.encode(errors="replace").decode(), err=True)
        raise typer.Exit(code)
    table = "results.parquet" if importlib.util.find_spec("pyarrow") else "results.jsonl"
    typer.echo(f"{out / table} ({bar.account})")
    raise typer.Exit(1 if bar.progress.failed else 0)
