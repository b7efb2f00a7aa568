"""New Python processes, each a fork of one that has imported what all of them would import first."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType


_SERVER = multiprocessing.get_context("forkserver")
# Of what diffusers imports, what takes longest and does not look at the environment.
_SERVER.set_forkserver_preload(["scipy.stats", "torch._dynamo"])
_PATH = [path for path in sys.path if path]  # before tests add to it


def run(*arguments: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """What `subprocess.run` gives of `python` with these arguments: `-c` and code, `-m` and a module, or a script."""
    with tempfile.TemporaryDirectory() as said:
        files = Path(said, "stdout"), Path(said, "stderr")
        process = _SERVER.Process(target=_become, args=([*map(str, arguments)], folder, environment, _PATH, files))
        process.start()
        process.join()
        output, errors = (file.read_text() for file in files)
    return subprocess.CompletedProcess(arguments, process.exitcode, output, errors)


def _become(
    arguments: list[str], folder: Path, environment: dict[str, str], path: list[str], files: tuple[Path, Path]
) -> None:
    for stream, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *path]
    match arguments:
        case "-c", code:
            sys.argv, sys.modules["__main__"] = ["-c"], ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
        case "-m", module, *_:
            sys.argv = arguments[1:]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case script, *_:
            sys.argv = arguments
            runpy.run_path(script, run_name="__main__")
