"""What makes the page safe to leave running: bounded pictures, sessions that end, and nothing that is fetched."""

from __future__ import annotations

import hashlib
import html
import os
import re
import reprlib
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
import PIL.ImageChops
import torch
from gradio.components.base import server
from gradio.components.image import ImageData
from gradio.components.image_editor import AcceptBlobs, EditorData
from starlette.responses import PlainTextResponse

from . import editing, loading, maps, studio
from .blocks import diffdiff_files
from .blocks.diffdiff_preview import CHANGED


RED = "#{:02x}{:02x}{:02x}".format(*CHANGED)
COPY_SIDE = 768  # pixels, the longer side of what is painted on: on larger ones every stroke takes seconds
MAX_UPLOAD, MAX_LAYER = 64 * 2**20, 5 * COPY_SIDE**2  # bytes of a request, of a painting in it
MAX_PIXELS, MAX_OPEN_PIXELS = 2**26, 2**29  # of a picture, of the photos of all sessions
MAX_FILES, MAX_BYTES = 2000, 4 * 2**30  # of what is kept at a time, for all sessions
MAX_WAITING, MAX_SESSIONS, MAX_QUEUE = 64, 100, 32
MAX_RESULTS, MAX_SHOWN = 48, 16  # of a session; of one part of its page, the last values
MAX_UNUSED, MAX_UNCLAIMED = 24 * 3600, 3600  # seconds, of sessions and of files
MAX_NUMBER, MAX_NAME = 1e15, 200  # MAX_NAME in bytes


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
    """A message in the words of the page, which shows it as HTML."""
    spoken = re.sub(r"--[a-z-]+|\b(PROMPT|IMAGE|MAP)\b", lambda named: WORDS.get(named[0], named[0]), str(message))
    return html.escape(spoken, quote=False)


# What visitors did wrong; it is no matter for the console.
refusal = partial(gr.Error, duration=None, print_exception=False)
FAILED = "This did not work; the console of the page says why."


@contextmanager
def shown() -> Iterator[None]:
    """Turns refusals into messages on the page, and leaves to the console what names files of this machine."""
    try:
        yield
    except studio.StoppedError as error:
        raise gr.Error("Stopped.", duration=5, print_exception=False) from error
    except (loading.UserError, FloatingPointError) as error:
        raise refusal(say(error)) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise refusal("The memory is too small for this; take a smaller picture.") from error
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise refusal(FAILED) from error


def read_upload(path: str | Path, name: str, title: str) -> editing.Picture:
    """A picture that was uploaded, as `editing.read_picture` reads one.

    Raises:
        gr.Error: If it cannot be read as an image of a bounded size.
    """
    try:
        data = Path(path).read_bytes()
        pixels = diffdiff_files.open_image(data, MAX_PIXELS)
    except diffdiff_files.UnreadableError as error:
        raise refusal(say(f"{title} cannot be read: {error}.")) from error
    return editing.Picture(title, name, hashlib.sha256(data).hexdigest(), pixels)


def file_name(location: str) -> str:
    """The name of an upload, such that files can be named after it."""
    name = "".join(filter(str.isprintable, editing.file_name(location)))
    return name.encode()[-MAX_NAME:].decode(errors="ignore") or "picture"


# Gradio's components write stubs beside the code of their subclasses; so these are changed one by one.


def photo(**given: Any) -> gr.Image:
    """An image that handlers get as the `editing.Picture` of its file, and that gradio does not decode."""
    image = gr.Image(format="png", **given)

    def preprocess(payload: ImageData | None) -> editing.Picture | None:
        if payload is None:
            return None
        name = file_name(payload.orig_name or payload.path)
        return read_upload(payload.path, name, f"{image.label} {name!r}")

    image.preprocess = preprocess
    uploaded = image.api_info() | {"additional_description": "A picture that is uploaded."}
    image.api_info_as_input = lambda: uploaded
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
        if data.data["type"] == "layer" and len(layer) <= MAX_LAYER:
            waiting[str(data.data["id"])[:64]] = layer
        while len(waiting) > MAX_WAITING:
            waiting.pop(next(iter(waiting)), None)

    def preprocess(payload: EditorData | None) -> editing.Picture | None:
        layer = payload and waiting.pop(payload.id, None)
        if payload and payload.layers and not layer:
            layer = Path(payload.layers[0].path).read_bytes()
        if not layer:
            return None
        try:
            alpha = diffdiff_files.open_image(layer, COPY_SIDE**2).convert("RGBA").getchannel("A")
        except diffdiff_files.UnreadableError as error:
            raise refusal(f"The painting cannot be read: {error}.") from error
        keep = PIL.ImageChops.invert(alpha)
        return studio.as_picture(keep, "The painting", "painting.png") if alpha.getbbox() else None

    editor.accept_blobs, editor.preprocess = accept_blobs, preprocess
    return editor


class Page(gr.Blocks):
    """Blocks that take of visitors what their parts take, and answer with a sentence whatever happens."""

    sessions: Sessions

    def close(self, verbose: bool = True) -> None:
        super().close(verbose)
        self.sessions.close()

    async def process_api(self, block_fn, inputs: list[Any], *rest, **extra) -> dict[str, Any]:
        try:
            answer = await super().process_api(block_fn, inputs, *rest, **extra)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(FAILED) from error
        shown = zip(block_fn.outputs, answer["data"], strict=False)
        self.sessions.hold(extra.get("session_hash"), inputs, {part._id: value for part, value in shown})
        return answer

    async def preprocess_data(self, block_fn, inputs: list[Any], *rest, **extra):
        check_values(block_fn.inputs, inputs)
        try:
            check_files(inputs, self.sessions.cache)
            return await super().preprocess_data(block_fn, inputs, *rest, **extra)
        except gr.Error:
            raise
        except Exception as error:
            raise refusal("This is not what the page sends.") from error

    async def postprocess_data(self, block_fn, predictions, state) -> list[Any]:
        check_files(predictions, self.sessions.cache)  # gradio would show what lies in the current folder
        data = await super().postprocess_data(block_fn, predictions, state)
        for part in block_fn.outputs:
            # gradio makes parts anew that it updates, without what was changed on them
            if state is not None and "preprocess" in vars(part):
                state[part._id] = part
        return data


def check_values(parts: list[gr.Component], values: list[Any]) -> None:
    """Refuses values that the parts of the page would not send; gradio leaves them to the browser.

    Raises:
        gr.Error: Naming the part.
    """
    if len(values) != len(parts):
        raise refusal(f"This takes {len(parts)} values, not {len(values)}.")
    for part, value in zip(parts, values, strict=True):
        takes = refused(part, value)
        if takes:
            given = "something else" if isinstance(value, list | dict) else reprlib.repr(value)
            raise refusal(say(f"{part.label} is {given}; it takes {takes}."))


def refused(part: gr.Component, value: Any) -> str | None:
    """What a part takes, if it does not take this value."""
    match part:
        case gr.Textbox():
            fits = value is None or (isinstance(value, str) and len(value) <= part.max_length and "\0" not in value)
            return None if fits else f"a text of at most {part.max_length:,} characters, none of them NUL"
        case gr.Number() | gr.Slider():
            whole = part.precision == 0 or (isinstance(part, gr.Slider) and part.step == 1)
            fits = isinstance(value, int if whole and part.precision != 0 else (int, float))
            low, high = (MAX_NUMBER if end is None else end for end in (part.minimum, part.maximum))
            fits = fits and not isinstance(value, bool) and low <= value <= high and (not whole or value == int(value))
            fits = fits or (value is None and isinstance(part, gr.Number))
            return None if fits else f"a {'whole ' * whole}number from {low} to {high}"
        case gr.Dropdown() | gr.Radio():
            return None if value in [choice for _, choice in part.choices] else "one of its choices"
        case gr.Checkbox():
            return None if isinstance(value, bool) else "true or false"
        case gr.Image() | gr.ImageEditor():
            return None if isinstance(value, dict | None) else "an uploaded picture"


def check_files(value: Any, folder: Path) -> None:
    """Refuses files that are not in a folder, in whatever holds them: gradio fetches what has an address.

    Raises:
        gr.Error: If a file lies elsewhere.
    """
    if isinstance(value, dict):
        if ("path" in value or "url" in value) and not _lies_in(value.get("path"), folder):
            raise refusal(
                "Pictures are uploaded here, or data: URLs over MCP; other addresses and paths are not opened."
            )
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            check_files(part, folder)


def _lies_in(path: Any, folder: Path) -> bool:
    return (
        isinstance(path, str)
        and "\0" not in path
        and folder in (file := Path(os.path.realpath(path))).parents
        and file.is_file()
    )


class Guard:
    """ASGI middleware that takes requests of bounded size, no more files than are kept at a time, and no addresses."""

    def __init__(self, app, sessions: Sessions):
        self.app, self.sessions = app, sessions

    async def __call__(self, scope, receive, send) -> None:
        refused = self._refused(scope) if scope["type"] == "http" else None
        if refused:
            return await PlainTextResponse(*refused)(scope, receive, send)
        answered = False

        async def send_on(message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception:  # gradio's own, of names and numbers that it does not know
            if answered:
                raise
            await PlainTextResponse("The page takes no such request.", 400)(scope, receive, send)

    def _refused(self, scope) -> tuple[str, int] | None:
        path = scope["path"].rstrip("/")
        if re.search(r"/file[=/]\w+:", path) or path.endswith("/process_recording"):
            return "Addresses are not opened.", 403
        length = dict(scope["headers"]).get(b"content-length", b"0" if scope["method"] in ("GET", "HEAD") else b"")
        most = 2 * MAX_LAYER if path.endswith("/component_server") else MAX_UPLOAD
        if not length.isdigit() or int(length) > most:
            return f"A request takes at most {most:,} bytes, and says how many.", 413
        if path.endswith(("/upload", "/mcp", "/mcp/http")) and self.sessions.are_full():
            return "Too many pictures are open here. Try again later.", 503
        return None


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
        if self.stop.exists() or not self.stop.parent.exists():  # stopped, or left
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
        pixels = sum(session.photo.pixels.width * session.photo.pixels.height for session in sessions if session.photo)
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
            own = {value["path"]} if _lies_in(value.get("path"), self.cache) else set()
            return own.union(*map(self._files_in, value.values()))
        return set().union(*map(self._files_in, value)) if isinstance(value, list | tuple) else set()
