"""What makes the page safe to leave running: bounded pictures and values, clear refusals, nothing that is fetched."""

from __future__ import annotations

import hashlib
import html
import re
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from gradio.data_classes import FileData
from starlette.responses import PlainTextResponse

from . import editing, loading, studio
from .blocks import diffdiff_files
from .blocks.diffdiff_preview import CHANGED
from .visitors import Sessions, lies_in


RED = "#{:02x}{:02x}{:02x}".format(*CHANGED)
COPY_SIDE = 768  # pixels, the longer side of what is painted on: on larger ones every stroke takes seconds
MAX_UPLOAD, MAX_LAYER = 64 * 2**20, 5 * COPY_SIDE**2  # bytes of a request, of a painting in it
MAX_PIXELS = 2**26  # of a picture
MAX_VIDEO_PIXELS = 2**28  # of all frames of a video
MAX_WAITING, MAX_QUEUE = 64, 32
MAX_NUMBER, MAX_NAME = 1e15, 200  # MAX_NAME in bytes


# What visitors call what the command line's messages name.
WORDS = {
    "PROMPT": "“What to show there”",
    "IMAGE": "the photo",
    "MAP": "the map",
    "--negative": "“What not to show”",
    "--text": "“Or say it in words”",
    "--threshold": "“Threshold”",
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
        raise refusal("There is not enough memory for this; use a smaller picture.") from error
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


def number(whole: bool = False, **given: Any) -> gr.Textbox:
    """A number that can be left out, which handlers get as None; gradio's own field shows 0 there."""
    field = gr.Textbox(max_length=20, **given)

    def preprocess(text: str | None) -> float | None:
        try:
            return (int if whole else float)(text) if text and text.strip() else None
        except ValueError as error:
            takes = "a whole number" if whole else "a number"
            raise refusal(say(f"{field.label} is {text!r}; it takes {takes}, or nothing.")) from error

    field.preprocess = preprocess
    return field


def video(**given: Any) -> gr.Video:
    """A video that handlers get as the `editing.Clip` of its file."""
    player = gr.Video(**given)

    def preprocess(payload: FileData | None) -> editing.Clip | None:
        if payload is None:
            return None
        name = file_name(payload.orig_name or payload.path)
        with shown():
            data = Path(payload.path).read_bytes()
            return editing.open_clip(data, f"{player.label} {name!r}", name, MAX_VIDEO_PIXELS)

    player.preprocess = preprocess
    return player


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
    """Blocks that take of visitors what their parts take, and answer with a sentence whatever happens.

    Attributes:
        has_tools: Whether it offers functions to other programs.
    """

    sessions: Sessions
    has_tools: bool

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
        case gr.Video():
            return None if isinstance(value, dict | None) else "an uploaded video"


def check_files(value: Any, folder: Path) -> None:
    """Refuses files that are not in a folder, in whatever holds them: gradio fetches what has an address.

    Raises:
        gr.Error: If a file lies elsewhere.
    """
    if isinstance(value, dict):
        if ("path" in value or "url" in value) and not lies_in(value.get("path"), folder):
            raise refusal(
                "Pictures are uploaded here, or data: URLs over MCP; other addresses and paths are not opened."
            )
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            check_files(part, folder)


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
