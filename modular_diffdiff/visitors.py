"""Who is on the page, what they have open, and the files that go when they leave."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
import PIL.ImageChops

from . import editing, maps, studio
from .blocks.diffdiff_preview import CHANGED


OPACITY = 0.6  # of what was painted before
MAX_SESSIONS = 100
MAX_OPEN_PIXELS = 2**29  # of the photos of all sessions
MAX_FILES, MAX_BYTES = 2000, 4 * 2**30  # of what is kept at a time, for all sessions
MAX_RESULTS, MAX_SHOWN = 48, 16  # of a session; of one part of its page, the last values
MAX_UNUSED, MAX_UNCLAIMED = 24 * 3600, 3600  # seconds, of sessions and of files


def lies_in(path: Any, folder: Path) -> bool:
    """Whether a path is a file's in a folder, links followed."""
    return (
        isinstance(path, str)
        and "\0" not in path
        and folder in (file := Path(os.path.realpath(path))).parents
        and file.is_file()
    )


@dataclass(frozen=True)
class Result:
    """A picture that was made, its map, and the command line that repeats it."""

    path: Path
    change_map: Path
    command: str


@dataclass(frozen=True)
class Watch:
    """Follows the steps of a run, and ends it when `stop` has come into being."""

    stop: Path
    progress: gr.Progress

    def __call__(self, step: int, steps: int) -> None:
        if self.stop.exists() or not self.stop.parent.exists():  # stopped, or left
            raise studio.StoppedError
        self.progress((step, steps), unit="steps")


@dataclass
class Session:
    """What one visitor has open.

    Attributes:
        photo: What is edited, a picture or a video.
        small: The same as it is painted on and looked at, of at most `COPY_SIDE` pixels.
        painted: What was painted on it before, as a change map: gradio's editor cannot be given strokes.
        strokes: What is painted on it now.
        memory: What the sources of maps made of it.
        results: What was made of it.
        chosen: The result that is looked at.
        folder: Where all files of the session are.
        given: Of gradio's files, those that were used.
        made: Of gradio's files, those that each part of the page showed last.
        used: When.
    """

    folder: Path
    photo: editing.Picture | None = None
    small: editing.Picture | None = None
    painted: PIL.Image.Image | None = None
    strokes: editing.Picture | None = None
    memory: maps.Memory = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    chosen: int = 0
    given: set[str] = field(default_factory=set)
    made: dict[int, deque[set[str]]] = field(default_factory=lambda: defaultdict(partial(deque, maxlen=MAX_SHOWN)))
    used: float = 0

    @property
    def files(self) -> set[str]:
        return self.given.union(*(files for shown in self.made.values() for files in shown))

    @property
    def stop(self) -> Path:
        return self.folder / "stop"

    def painting(self, strokes: editing.Picture | None) -> editing.Picture | None:
        """All that is painted on the photo, as a change map, in these strokes and before."""
        if self.painted is None:
            return strokes
        keep = self.painted.resize(self.small.pixels.size)
        if strokes is not None:
            keep = PIL.ImageChops.darker(keep, strokes.pixels.resize(keep.size))
        return studio.as_picture(keep, "The painting", "painting.png")

    def easel(self) -> PIL.Image.Image:
        """The picture to paint on, in which what was painted before is red already."""
        if self.painted is None:
            return self.small.pixels
        keep = self.painted.resize(self.small.pixels.size)
        veil = PIL.ImageChops.invert(keep).point(lambda value: round(OPACITY * value))
        return PIL.Image.composite(PIL.Image.new("RGB", veil.size, CHANGED), self.small.pixels, veil)

    def new_folder(self) -> Path:
        """For one run, which nobody has stopped yet; those of results that nobody sees any more go."""
        self.stop.unlink(missing_ok=True)
        del self.results[:-MAX_RESULTS]
        for folder in {path for path in self.folder.iterdir() if path.is_dir()} - {r.path.parent for r in self.results}:
            shutil.rmtree(folder, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self.folder))


class Sessions:
    """The sessions that are open, by gradio's name for them; when one ends, its files go.

    Attributes:
        cache: Where gradio keeps uploads, and copies of what it shows; a file's path holds the hash of its content.
        own: Of its files, those of the page.
    """

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="modular-diffdiff-")).resolve()
        self.cache = self.folder / "cache"
        self.cache.mkdir()
        self.open: dict[str, Session] = {}
        self.lock, self.own = threading.RLock(), set()

    def begin(self) -> None:
        """Marks when visitors come: what lies in the cache until then is the page's own."""
        self.own = self._kept()

    def close(self) -> None:
        """Deletes all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def of(self, request: gr.Request) -> Session:
        return self._named(request.session_hash)

    def _named(self, name: str) -> Session:
        with self.lock:
            session = self.open.pop(name, None) or Session(Path(tempfile.mkdtemp(dir=self.folder)))
            self.open[name] = session  # the one used last comes last
            session.used = time.time()
            while self._has_too_many():
                self.end(next(iter(self.open)))
        return session

    def _has_too_many(self) -> bool:
        sessions = list(self.open.values())
        pixels = sum(session.photo.count_pixels() for session in sessions if session.photo)
        unused = time.time() - sessions[0].used > MAX_UNUSED
        return unused or (len(sessions) > 1 and (len(sessions) > MAX_SESSIONS or pixels > MAX_OPEN_PIXELS))

    def hold(self, name: str | None, given: list[Any], made: dict[int, Any]) -> None:
        """Keeps files for a session: what it was given to its end, and of what was made the last."""
        given, made = self._files_in(given), {part: self._files_in(value) for part, value in made.items()}
        if name is None or not given.union(*made.values()):
            return
        with self.lock:
            session = self._named(name)
            before = session.files
            session.given |= given
            for part, files in made.items():
                if files:
                    session.made[part].append(files)
            self._release(before)

    def end(self, name: str | None) -> None:
        """Ends a session, and deletes its files that no other session holds."""
        with self.lock:
            session = self.open.pop(name, None)
            if session is not None:
                session.stop.touch()
                shutil.rmtree(session.folder, ignore_errors=True)
                self._release(session.files)
                self.tidy()

    def tidy(self) -> None:
        """Deletes files that no session used for long after they came."""
        with self.lock:
            late = time.time() - MAX_UNCLAIMED
            self._release({path for path in self._kept() if os.path.exists(path) and os.path.getmtime(path) < late})

    def are_full(self) -> bool:
        """Whether no more uploads are taken."""
        self.tidy()
        sizes = [os.path.getsize(path) for path in self._kept() if os.path.exists(path)]
        return len(sizes) >= MAX_FILES or sum(sizes) >= MAX_BYTES

    def _release(self, files: set[str]) -> None:
        for path in files.difference(self.own, *(session.files for session in self.open.values())):
            Path(path).unlink(missing_ok=True)
            with suppress(OSError):  # others are in it
                Path(path).parent.rmdir()

    def _kept(self) -> set[str]:
        return {os.path.join(folder, name) for folder, _, names in os.walk(self.cache) for name in names}

    def _files_in(self, value: Any) -> set[str]:
        """Those of the cache that a part's value holds."""
        if isinstance(value, dict):
            own = {value["path"]} if lies_in(value.get("path"), self.cache) else set()
            return own.union(*map(self._files_in, value.values()))
        return set().union(*map(self._files_in, value)) if isinstance(value, list | tuple) else set()
