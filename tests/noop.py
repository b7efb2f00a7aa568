"""A batch without a model, in a process of its own: `python -m tests.noop MANIFEST OUT [ENGINE [OPTION=JSON ...]]`.

It ends as `modular-diffdiff batch` does, after a line with its peak memory. What a row does is its prompt.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from modular_diffdiff import batch_command
from modular_diffdiff.batch_work import Editor, Made
from modular_diffdiff.ledger import IMAGES


class NoOp(Editor):
    """Files that follow from the row's id and seed; each edit is a line in a log.

    Args:
        log: The file of that.
        seconds: How long an edit takes.
        size: Of a file, in bytes.
    """

    def __init__(self, log: Path, seconds: float = 0.0, size: int = 1000):
        self.log, self.seconds, self.size = log, seconds, size

    def call_of(self, row):
        return ("steps", row.params["steps"])

    def edit(self, rows):
        with self.log.open("a") as log:
            log.write("".join(f"{row.id}\n" for row in rows))
        if self.seconds:
            time.sleep(self.seconds)
        for row in rows:
            if row.prompt == "fail":
                raise ValueError("a bad row")
            if row.prompt == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if row.prompt == "hang":
                time.sleep(600)
        return [Made({IMAGES: content(row.id, row.params["seed"], self.size)}, len(rows)) for row in rows]


def content(row_id: str, seed: int, size: int = 1000) -> bytes:
    return (f"{row_id} {seed}\n".encode() * size)[:size]


def main(manifest: str, out: str, engine: str = "local", *options: str) -> None:
    given = {name: json.loads(value) for name, _, value in (option.partition("=") for option in options)}
    own = {name: given.pop(name) for name in ("seconds", "size") if name in given}
    try:
        editor = NoOp(Path(manifest).absolute().with_suffix(".log"), **own)
        batch_command.run(Path(manifest), Path(out), engine=engine, editor=editor, **given)
    finally:
        print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


if __name__ == "__main__":
    import typer

    from tests import noop  # workers know its editor by this name

    try:
        noop.main(*sys.argv[1:])
    except typer.Exit as end:
        sys.exit(end.exit_code)
