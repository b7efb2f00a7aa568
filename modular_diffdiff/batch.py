"""Batches: a manifest of edits in, pictures and a table out, on one machine or many.

`run_batch` is what `modular-diffdiff batch` does. `manifest` reads the rows, `ledger` keeps account of them on disk,
`batch_work` is what a worker does, `batch_edits` makes its pictures; `batch_local` and `batch_ray` run the workers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import asking
from .batch_work import Editor, Job, Plan
from .blocks import diffdiff_files
from .ledger import BEGUN, DONE, FAILED, IMAGES, MAPS, JobError, Ledger
from .loading import UserError
from .manifest import COLUMNS, OF_THE_JOB, OPTIONS, Manifest


THREADS = 1  # of a worker: the same on every machine
TIMEOUT = 3600.0  # seconds
PENDING = "pending"
TABLE = (
    *("id", "status", "error", "path", "sha256", "seconds", "attempts", "worker", "fingerprint"),
    *("seed", "batch", "warnings"),
)
AT_ONCE = 1024  # rows of the table in memory


@dataclass(frozen=True)
class Progress:
    """How far a batch is.

    Attributes:
        total: Rows of the manifest.
        done: Those that are done, by this run or an earlier one.
        failed: Those that have failed, likewise.
        settled: Those that this run has done, or has seen fail.
        wanted: Those that this run is for.
    """

    total: int
    done: int
    failed: int
    settled: int
    wanted: int

    @property
    def pending(self) -> int:
        return self.total - self.done - self.failed


def run_batch(
    manifest: str | os.PathLike,
    out: str | os.PathLike,
    *,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    batch_size: int = 1,
    with_maps: bool = False,
    retry_errors: bool = False,
    limit: int | None = None,
    timeout: float = TIMEOUT,
    on_progress: Callable[[Progress], Any] = lambda progress: None,
    editor: Editor | None = None,
    **options: Any,
) -> Progress:
    """Makes the edits of a manifest, and a table of them; what an earlier run has done stays as it is.

    Args:
        manifest: A .jsonl, .csv or .parquet file, a row for each edit: `id`, and what `modular-diffdiff edit` takes of
            one picture, by its parameters' names.
        out: The folder for `images/`, `videos/`, `maps/`, `results.jsonl` and, with pyarrow, `results.parquet`.
        engine: Processes on this machine, or a Ray cluster: the one at RAY_ADDRESS, or one of this machine.
        workers: How many, each with a copy of the model; by default one for each accelerator. Without any, one, or
            with Ray as many as CPUs can be spared.
        batch_size: How many rows may share a call of the model. At 1 pictures are those of `edit`, byte for byte;
            else their pixels differ by 1/255 at most.
        with_maps: Whether each row's map is written too.
        retry_errors: Whether rows that have failed are done again.
        limit: How many rows to do now, all by default.
        timeout: Seconds without a row that ends, after which the job does.
        on_progress: Called before the first row and after each.
        editor: What makes the pictures; by default the model of `options`.
        options: The other parameters of `edit`: those of the job (`model`, `device`, ...), and what holds for rows that
            say nothing else. `threads` is 1 by default.

    Raises:
        UserError: If something cannot be used; of a manifest, with all of its rows' mistakes.
        JobError: If the job cannot go on, e.g. on a full disk. What is done is done: the same call goes on.
    """
    for name in options:
        if name not in {*OF_THE_JOB, *COLUMNS} - {"image"}:
            raise TypeError(f"run_batch() got an unexpected keyword argument {name!r}")
    defaults = {name: option.default for name, option in OPTIONS.items()} | {"threads": THREADS} | options
    for name in asking.PICTURES:
        if isinstance(defaults[name], (str, os.PathLike)) and not diffdiff_files.is_url(str(defaults[name])):
            defaults[name] = os.path.abspath(defaults[name])
    if editor is None:
        from .batch_edits import PictureEditor

        editor = PictureEditor(defaults["device"], with_maps)
    kinds = (IMAGES, MAPS) if with_maps else (IMAGES,)
    job = Job(Manifest(Path(manifest).absolute(), defaults), Ledger(Path(out).absolute()), editor, batch_size, kinds)
    job.ledger.open()
    with job.ledger.locked():
        try:
            return _run(job, _make_engine(engine, job, workers, timeout), (retry_errors, limit), on_progress)
        except UserError:
            job.ledger.discard()
            raise


def _make_engine(name: str, job: Job, workers: int | None, timeout: float):
    if name == "local":
        from .batch_local import LocalEngine

        return LocalEngine(job, workers, timeout)
    try:
        from .batch_ray import RayEngine
    except ModuleNotFoundError as error:
        raise UserError("--engine ray needs Ray: pip install 'ray[data]'.") from error
    return RayEngine(job, workers, timeout)


def _run(job: Job, engine, asked: tuple, on_progress: Callable[[Progress], Any]) -> Progress:
    with closing(engine):
        plan = engine.plan(*asked)
        counts, settled = {DONE: plan.done, FAILED: plan.failed}, 0
        progress = Progress(plan.total, plan.done, plan.failed, 0, plan.wanted)
        try:
            on_progress(progress)
            for outcome in engine.run(plan):
                counts[outcome.status] += 1
                settled += 1
                progress = Progress(plan.total, counts[DONE], counts[FAILED], settled, plan.wanted)
                on_progress(progress)
        except BaseException:
            engine.close()
            with suppress(JobError):  # the first error counts, and the disk may be full
                job.ledger.withdraw(job.manifest.ids(), job.run)
                write_tables(job, plan)
            raise
        write_tables(job, plan)
    return progress


def write_tables(job: Job, plan: Plan) -> None:
    """Writes `results.jsonl` and, where pyarrow is installed, `results.parquet`: a row for each of the manifest's."""
    with job.ledger.writing(job.ledger.folder / "results.jsonl") as path, path.open("w") as file:
        for row in _results(job, plan):
            file.write(json.dumps(row) + "\n")
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        return
    text, number = pyarrow.string(), pyarrow.int64()
    types = dict.fromkeys(TABLE, text) | dict.fromkeys(("attempts", "seed", "batch"), number)
    types |= {"seconds": pyarrow.float64(), "warnings": pyarrow.list_(text)}
    schema = pyarrow.schema(types)
    with job.ledger.writing(job.ledger.folder / "results.parquet") as path, parquet.ParquetWriter(path, schema) as file:
        rows = _results(job, plan)
        while part := [row for _, row in zip(range(AT_ONCE), rows, strict=False)]:
            file.write_table(pyarrow.Table.from_pylist(part, schema))


def _results(job: Job, plan: Plan) -> Iterator[dict[str, Any]]:
    """What is known of each row. What was to be done anew, and has not been, is pending."""
    for row_id, number in zip(job.manifest.ids(), plan.pipelines(), strict=True):
        state = job.ledger.read(row_id)
        told = {"id": row_id, "status": PENDING, "attempts": 0, "warnings": []}
        if state is not None and state.status == BEGUN:
            told["attempts"] = state.attempts
        elif state is not None and (number == 0 or state.run == job.run):
            told |= vars(state)
        if told["status"] == DONE:
            told["path"] = job.ledger.file_of(row_id, state.kind).relative_to(job.ledger.folder).as_posix()
        yield {name: told.get(name) for name in TABLE}
