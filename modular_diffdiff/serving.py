"""What makes the page safe to leave running: bounded pictures, sessions that end, and nothing that is fetched."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
import PIL.ImageChops
from gradio.components.base import server
from gradio.components.image import ImageData
from gradio.components.image_editor import AcceptBlobs, EditorData
from starlette.responses import PlainTextResponse

from . import editing, loading, maps, studio
from .blocks import diffdiff_files
from .blocks.diffdiff_preview import CHANGED


RED = "#{:02x}{:02x}{:02x}".format(*CHANGED)
MAX_UPLOAD = 64 * 2**20  # bytes of a file
MAX_FILES, MAX_WAITING, MAX_SESSIONS = 500, 64, 100  # at a time, of all sessions
COPY_SIDE = 1024  # pixels, the longer side of what is painted on: on larger ones every stroke takes seconds
MAX_QUEUE = 32


# What visitors call what the command line's messages name.
WORDS = {
    "PROMPT": "“What to show there”",
    "IMAGE": "the photo",
    "MAP": "the map",
    "--negative": "“What not to show”",
    "--text": "“Or say it in words”",
    "--threshold": "“Sure from”",
    "--point": "“Points”",
    "--box": "“Boxes”",
    "--depth": "“By distance”",
    "--gradient": "“Gradient”",
    "--mask": "the mask",
    "--difference": "the photo before",
    "--grow": "“Grow”",
    "--feather": "“Feather”",
    "--levels": "“Levels”",
    "--limits": "“Limits”",
    "--strength": "“Strength”",
    "--softness": "“Softness”",
    "--crop": "“Only around the change”",
    "--overlay": "“Original pixels outside”",
    "--match-colors": "“Match colours”",
}


def say(message: object) -> str:
    """A message in the words of the page."""
    return re.sub(r"--[a-z-]+|\b(PROMPT|IMAGE|MAP)\b", lambda named: WORDS.get(named[0], named[0]), str(message))


@contextmanager
def shown() -> Iterator[None]:
    """Turns refusals into messages on the page."""
    try:
        yield
    except studio.StoppedError as error:
        raise gr.Error("Stopped.", duration=5, print_exception=False) from error
    except (loading.UserError, OSError, FloatingPointError) as error:
        raise gr.Error(say(error), duration=None, print_exception=False) from error


def read_upload(path: str | Path, name: str, title: str) -> editing.Picture:
    """A picture that was uploaded, as `editing.read_picture` reads one.

    Raises:
        gr.Error: If it cannot be read as an image of a bounded size.
    """
    try:
        data = Path(path).read_bytes()
        return editing.Picture(title, name, hashlib.sha256(data).hexdigest(), diffdiff_files.open_image(data))
    except (OSError, diffdiff_files.UnreadableError) as error:
        raise gr.Error(f"{title} cannot be read: {error}.", print_exception=False) from error


# Gradio's components write stubs beside the code of their subclasses; so these are changed one by one.


def photo(**given: Any) -> gr.Image:
    """An image that handlers get as the `editing.Picture` of its file, and that gradio does not decode."""
    image = gr.Image(format="png", **given)

    def preprocess(payload: ImageData | None) -> editing.Picture | None:
        if payload is None:
            return None
        if not payload.path:
            raise gr.Error(f"{image.label} is not an uploaded file.", print_exception=False)
        name = editing.file_name(payload.orig_name or payload.path)
        return read_upload(payload.path, name, f"{image.label} {name!r}")

    image.preprocess = preprocess
    return image


def painting(**given: Any) -> gr.ImageEditor:
    """A photo to paint on, whose handlers get what is painted as a change map, or None where nothing is."""
    editor = gr.ImageEditor(
        format="png",
        image_mode="RGBA",
        sources=(),
        transforms=(),
        brush=gr.Brush(colors=[(RED, share) for share in (1.0, 0.75, 0.5, 0.25)], color_mode="fixed"),
        layers=gr.LayerOptions(allow_additional_layers=False),
        **given,
    )
    waiting: dict[str, bytes] = {}  # layers that were sent and not read yet, by the painting

    @server
    def accept_blobs(data: AcceptBlobs) -> None:
        (_, layer), *_ = data.files
        if data.data["type"] == "layer" and len(layer) <= MAX_UPLOAD:
            waiting[str(data.data["id"])[:64]] = layer
        while len(waiting) > MAX_WAITING:
            waiting.pop(next(iter(waiting)))

    def preprocess(payload: EditorData | None) -> editing.Picture | None:
        layer = payload and waiting.pop(payload.id, None)
        if payload and payload.layers and not layer:
            layer = Path(payload.layers[0].path).read_bytes()
        if not layer:
            return None
        try:
            alpha = diffdiff_files.open_image(layer).convert("RGBA").getchannel("A")
        except diffdiff_files.UnreadableError as error:
            raise gr.Error(f"The painting cannot be read: {error}.", print_exception=False) from error
        keep = PIL.ImageChops.invert(alpha)
        return studio.as_picture(keep, "The painting", "painting.png") if alpha.getbbox() else None

    editor.accept_blobs, editor.preprocess = accept_blobs, preprocess
    return editor


class Page(gr.Blocks):
    """Blocks whose inputs are files of the page's own: gradio fetches what has an address before any handler runs."""

    async def preprocess_data(self, block_fn, inputs: list[Any], *rest, **extra):
        refuse_addresses(inputs)
        return await super().preprocess_data(block_fn, inputs, *rest, **extra)


def refuse_addresses(value: Any) -> None:
    """Refuses files that lie elsewhere, in whatever holds them.

    Raises:
        gr.Error: If a file's path is an address.
    """
    if isinstance(value, dict):
        if "://" in str(value.get("path", "")):
            raise gr.Error("Pictures are uploaded; addresses are not opened.", print_exception=False)
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            refuse_addresses(part)


class BoundedUploads:
    """ASGI middleware that takes no more files than the page keeps at a time."""

    def __init__(self, app, folder: str):
        self.app, self.folder = app, folder

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload"):
            length = dict(scope["headers"]).get(b"content-length", b"")
            kept = sum(len(files) for _, _, files in os.walk(self.folder))
            if not length.isdigit() or int(length) > MAX_UPLOAD or kept >= MAX_FILES:
                answer = PlainTextResponse("Too large, or too many pictures are open here. Try again later.", 413)
                return await answer(scope, receive, send)
        return await self.app(scope, receive, send)


@dataclass(frozen=True)
class Result:
    """A picture that was made, its map, and the command line that makes it again."""

    path: Path
    change_map: Path
    command: str


@dataclass(frozen=True)
class Watch:
    """Follows the steps of a run, and ends it when `stop` has come into being."""

    stop: Path
    progress: gr.Progress

    def __call__(self, step: int, steps: int) -> None:
        if self.stop.exists():
            raise studio.StoppedError
        self.progress((step, steps), unit="steps")


@dataclass
class Session:
    """What one visitor has open.

    Attributes:
        photo: What is edited.
        small: The same as it is painted on and looked at, of at most `COPY_SIDE` pixels.
        painted: What was painted on it before, as a change map: gradio's editor cannot be given strokes.
        strokes: What is painted on it now.
        memory: What the sources of maps made of it.
        results: What was made of it.
        chosen: The result that is looked at.
        folder: Where all files of the session are.
    """

    photo: editing.Picture | None = None
    small: editing.Picture | None = None
    painted: PIL.Image.Image | None = None
    strokes: editing.Picture | None = None
    memory: maps.Memory = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    chosen: int = 0
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="modular-diffdiff-")))
    began: float = field(default_factory=time.time)

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

    def new_folder(self) -> Path:
        """For one run, which nobody has stopped yet."""
        self.stop.unlink(missing_ok=True)
        return Path(tempfile.mkdtemp(dir=self.folder))


class Sessions:
    """The sessions that are open, by gradio's name for them; when one ends, its files go."""

    def __init__(self, cache: str):
        self.open: dict[str, Session] = {}
        self.cache, self.lock, self.began = cache, threading.Lock(), math.inf

    def begin(self) -> None:
        """Marks when visitors come: what lies in the cache until then is the page's own."""
        self.began = time.time()

    def of(self, request: gr.Request) -> Session:
        with self.lock:
            session = self.open.pop(request.session_hash, None) or Session()
            self.open[request.session_hash] = session  # the one used last comes last
            unused = next(iter(self.open)) if len(self.open) > MAX_SESSIONS else None
        self.end(unused)
        return session

    def end(self, name: str | None) -> None:
        """Ends a session, and deletes of gradio's copies those that are older than every other session."""
        with self.lock:
            session = self.open.pop(name, None)
            oldest = min((other.began for other in self.open.values()), default=time.time())
        if session is None:
            return
        session.stop.touch()
        shutil.rmtree(session.folder, ignore_errors=True)
        for path in Path(self.cache).rglob("*"):
            if path.is_file() and self.began < path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
