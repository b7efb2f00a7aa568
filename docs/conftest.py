"""Every Python block of these pages runs, in order; what follows a `>>>` is compared with what it prints.

The tutorial runs as a notebook, in `tests/test_pages.py`.
"""

import os
import tempfile
from doctest import ELLIPSIS

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


PARSERS = [PythonCodeBlockParser(doctest_optionflags=ELLIPSIS)]
_folders = []


def enter_an_empty_folder(namespace: dict) -> None:
    _folders.append((os.getcwd(), tempfile.TemporaryDirectory()))
    os.chdir(_folders[-1][1].name)


def leave_it(namespace: dict) -> None:
    before, folder = _folders.pop()
    os.chdir(before)
    folder.cleanup()


pytest_collect_file = Sybil(
    parsers=PARSERS,
    patterns=["*.md"],
    excludes=["tutorial.md"],
    setup=enter_an_empty_folder,
    teardown=leave_it,
).pytest()
