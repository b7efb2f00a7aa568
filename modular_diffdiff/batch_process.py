"""A process of a batch, which the command starts, asks and watches.

The other side is `python -m modular_diffdiff.batch_process HANDLE`: it makes an object, and answers calls of its
methods over a pipe. It ends when the pipe does, so that it does not outlive the command, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from .ledger import JobError


# One bar is enough, and what libraries say at their import is about no row.
QUIET = dict.fromkeys(("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
QUIET |= dict.fromkeys(("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"), "critical")


class ProcessDiedError(Exception):
    """A process has ended by itself; the message says how."""


class Process:
    """A process, seen from the command.

    Args:
        make: Makes the object, of `asked`.
        environment: What the process has beside the command's.
        stderr: As `subprocess.Popen` takes it.
    """

    def __init__(self, make: Callable, *asked: Any, environment: dict[str, str] | None = None, stderr: Any = None):
        self.pipe, theirs = Pipe()
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | QUIET | path | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        theirs.close()
        self._send(make, *asked)

    def _send(self, *message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died; `receive` says so
            self.pipe.send(message)

    def start(self, method: str, *asked: Any) -> None:
        """Calls a method; `receive` gives what it returns, or each thing that it yields and None at the end."""
        self._send(method, *asked)

    def call(self, method: str, *asked: Any) -> Any:
        """Calls a method, and waits for what it returns."""
        self.start(method, *asked)
        return self.receive()

    def receive(self) -> Any:
        """What the process answers.

        Raises:
            ProcessDiedError: If it cannot answer any more.
            Exception: What the method raised.
        """
        try:
            succeeded, answer = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            code = self._process.wait()
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise ProcessDiedError(how) from error
        if not succeeded:
            raise answer
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self.pipe.close()


def _listen(pipe: Connection, messages: queue.SimpleQueue) -> None:
    """Takes what is sent, also while a method runs: the end of the pipe is the end of the process."""
    try:
        while True:
            messages.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)
    except Exception:  # what it gets cannot be unpickled here
        traceback.print_exc()
        os._exit(1)


def _answers(method: Callable, asked: tuple) -> Iterator[tuple[bool, Any]]:
    try:
        answer = method(*asked)
        if isinstance(answer, Iterator):
            yield from ((True, part) for part in answer)
            answer = None
        yield True, answer
    except Exception as error:
        yield False, _sendable(error)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return JobError(f"{type(error).__name__}: {error}")
    return error


def main(handle: int) -> None:
    """The other side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    pipe, messages = Connection(handle), queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, messages), daemon=True).start()
    make, *asked = messages.get()
    try:
        made = make(*asked)
    except Exception as error:
        pipe.send((False, _sendable(error)))
        return
    while True:
        name, *asked = messages.get()
        for answer in _answers(getattr(made, name), asked):
            pipe.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
