"""A table of command lines, each with what it must end in: a picture, or one line that says what was wrong.

    python -m tests.command_lines

The files are of every odd kind, the options at their edges and beyond, the models not always models; processes are
killed, run twice at once, and run out of space. It prints a count, and every row that misbehaves.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from PIL import Image, ImageCms
from typer.testing import CliRunner

import modular_diffdiff
from modular_diffdiff.blocks import diffdiff_files
from modular_diffdiff.cli import app

from .clips import make_clip
from .helpers import picture
from .test_files import huge_png


SIZE = (64, 48)
PROMPT = "a green pear"
EDIT = ("edit", "photo.png", "map.png", PROMPT, "--steps", "1")
# Where a picture can stand.
PLACES = {
    "IMAGE": ("edit", "{}", "map.png", PROMPT, "--steps", "1"),
    "MAP": ("edit", "photo.png", "{}", PROMPT, "--steps", "1"),
    "--control-image": (*EDIT, "--control-image", "{}"),
    "--ip-adapter-image": (*EDIT, "--ip-adapter-image", "{}"),
    "--mask": ("map", "photo.png", "--mask", "{}"),
}
# The other commands, which share their options with `edit`: what they have alone.
FAN = ("fan", "photo.png", PROMPT, "--steps", "2")
FAN_TAKEN = (
    *(
        (),
        ("map.png",),
        ("map.png", "--invert-map"),
        ("deep.png",),
        ("--strengths", "0,1"),
        ("--strengths", " 0.5 , 1"),
    ),
    *(("map.png", "--overlay", "--grow", "2"), ("--model", "still-life-flow"), ("--control-image", "L.png")),
)
FAN_REFUSED = {
    "--strengths": ("", "x", "1", "0.5,", "0.5,0.5", "0.6,0.5", "-0.1,1", "0.5,1.1", "0,nan", "0;1", "0,1e999"),
    "--strength": ("0.5",),
    "--crop": ("2",),
    "--count": ("2",),
    "--out": ("there.png", "a.jpg", "nowhere/a.png"),
}
# A batch: the options of `edit` are tried there, but that each row has its own count and files.
BATCH = ("batch", "rows.jsonl", "--out", "done")
BATCH_REFUSED = {
    "--engine": ("", "slurm", "Ray"),
    "--workers": ("0", "-1", "x", ""),
    "--batch-size": ("0", "1001", "x"),
    "--limit": ("0", "-1", "x"),
    "--timeout": ("0", "-1", "x"),
    "--levels": ("1",),
    "--count": ("2",),
    "--out": ("", "photo.png", "photo.png/done", "a-list", "/proc/done"),
}
GOOD = {"id": "a", "image": "photo.png", "map": "map.png", "prompt": "a pear"}
# Manifests with a mistake, and what is said of it.
MANIFESTS = {
    "unknown.jsonl": (json.dumps(GOOD | {"colour": "red"}), "colour"),
    "twice.jsonl": (f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}", "Row 2"),
    "leaves.jsonl": (json.dumps(GOOD | {"id": "../a"}), "Row 1"),
    "no-photo.jsonl": (json.dumps(GOOD | {"image": "nowhere.png"}), "nowhere.png"),
    "no-map.jsonl": (json.dumps(GOOD | {"map": None}), "nothing says what may change"),
    "a-list.jsonl": ("[1, 2]", "Row 1"),
    "no-json.jsonl": ("{", "Row 1"),
    "empty.jsonl": ("", "empty.jsonl"),
    "no-columns.csv": ("\n", "no-columns.csv"),
    "no-parquet.parquet": ("id", "no-parquet.parquet"),
    "rows.txt": ("a", "rows.txt"),
}
BAR = re.compile(r"it/s\]|s/it\]|\d+%\|")
PYTHON = re.compile(r"Traceback| at 0x[0-9a-f]+|<[\w.]+(?: object|class)|PIL\.Image|image\.convert")


@dataclass(frozen=True)
class Row:
    """A command line.

    Attributes:
        arguments: In them, `{site}` stands for the address of a web site with the folder's files.
        code: The exit code that it must have.
        said: What it must say, in its one line or in a warning.
    """

    arguments: tuple[str, ...]
    code: int = 0
    said: str = ""
    stdin: bytes | None = None

    def __str__(self) -> str:
        return " ".join(map(ascii, self.arguments))


# Files


def photo() -> Image.Image:
    return picture(*SIZE[::-1])


def see_through(mode: str = "RGBA") -> Image.Image:
    image = photo()
    image.putalpha(100)
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def several(kind: str) -> bytes:
    return saved(photo(), kind, save_all=True, append_images=[picture(*SIZE[::-1], seed=7)])


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
READABLE = {
    **{f"{mode}.png": lambda mode=mode: saved(photo().convert(mode), "png") for mode in ("1", "L", "P", "RGB")},
    **{f"opaque-{mode}.png": lambda mode=mode: saved(photo().convert(mode), "png") for mode in ("LA", "RGBA")},
    **{f"{kind}.{kind}": lambda kind=kind: saved(photo(), kind) for kind in ("jpeg", "webp", "bmp", "gif", "tiff")},
    **{f"{kind}.{kind}": lambda kind=kind: saved(photo(), kind) for kind in ("avif", "ppm", "tga", "pcx")},
    "cmyk.jpg": lambda: saved(photo().convert("CMYK"), "jpeg"),
    "cmyk.tiff": lambda: saved(photo().convert("CMYK"), "tiff", compression="tiff_lzw"),
    "ycbcr.tiff": lambda: saved(photo().convert("YCbCr"), "tiff"),
    "lab.tiff": lambda: saved(Image.new("LAB", SIZE), "tiff"),
    "progressive.jpg": lambda: saved(photo(), "jpeg", progressive=True),
    "palette-hole-unused.png": lambda: saved(Image.new("P", SIZE, 1), "png", transparency=0),
    "turned.jpg": lambda: saved(photo(), "jpeg", exif=turned()),
    "turned.png": lambda: saved(photo(), "png", exif=turned()),
    "profile.png": lambda: saved(photo(), "png", icc_profile=SRGB, dpi=(300, 300)),
    "broken-profile.png": lambda: saved(photo(), "png", icc_profile=b"no profile"),
    "broken-exif.jpg": lambda: saved(photo(), "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "one.png": lambda: saved(picture(1, 1), "png"),
    "thin.png": lambda: saved(picture(1, 90), "png"),
    "tall.png": lambda: saved(picture(90, 2), "png"),
    "preview.mpo": lambda: saved(photo(), "mpo", save_all=True, append_images=[picture(8, 8)]),
    "a png.txt": lambda: saved(photo(), "png"),
    "no suffix": lambda: saved(photo(), "png"),
    "two  spaces.png": lambda: saved(photo(), "png"),
    "bücher 梨.png": lambda: saved(photo(), "png"),
    "new\nline.png": lambda: saved(photo(), "png"),
    "per%20cent.png": lambda: saved(photo(), "png"),
    os.fsdecode(b"no-utf-8-\xff.png"): lambda: saved(photo(), "png"),
    "folder/../photo.png": None,
    "link.png": None,
    "./-dash.png": lambda: saved(photo(), "png"),
}
ANIMATED = {f"frames.{kind}": lambda kind=kind: several(kind) for kind in ("png", "gif", "webp", "tiff", "avif")}
TRANSPARENT = {
    "glass.png": lambda: saved(see_through(), "png"),
    "grey-glass.png": lambda: saved(see_through("LA"), "png"),
    "glass.webp": lambda: saved(see_through(), "webp"),
    "palette-glass.png": lambda: saved(Image.new("P", SIZE), "png", transparency=0),
    "colour-glass.png": lambda: saved(Image.new("RGB", SIZE), "png", transparency=(0, 0, 0)),
    "grey-hole.png": lambda: saved(Image.new("L", SIZE), "png", transparency=0),
    "hole.gif": lambda: saved(Image.new("P", SIZE), "gif", transparency=0),
}
DEEP = {
    "deep.png": lambda: saved(Image.new("I;16", SIZE, 40000), "png"),
    "deep.tiff": lambda: saved(Image.new("I;16", SIZE, 40000), "tiff"),
}
DEEPER = {
    "integers.tiff": lambda: saved(Image.new("I", SIZE, 40000), "tiff"),
    "floats.tiff": lambda: saved(Image.new("F", SIZE, 200), "tiff"),
    "nan.tiff": lambda: saved(Image.new("F", SIZE, float("nan")), "tiff"),
}
VIDEOS = {"clip.mp4": make_clip, "no-video.mp4": lambda: b"no video"}
UNREADABLE = {
    "empty.png": lambda: b"",
    "byte.png": lambda: b"\x89",
    "text.png": lambda: b"no picture",
    "cut.png": lambda: saved(photo(), "png")[:200],
    "cut.jpg": lambda: saved(photo(), "jpeg")[:700],
    "cut.gif": lambda: saved(photo(), "gif")[:200],
    "cut.webp": lambda: saved(photo(), "webp")[:200],
    "head.png": lambda: saved(photo(), "png")[:33],
    "spoilt.png": lambda: saved(photo(), "png").replace(b"IDAT", b"IDAT\0\0\0\0", 1),
    "huge.png": lambda: huge_png(2**14, 2**13 + 1),
    "enormous.png": lambda: huge_png(2**31 - 1, 2**31 - 1),
    "program.eps": lambda: saved(photo(), "eps"),
    "drawing.svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "page.pdf": lambda: b"%PDF-1.7\n",
    "noise.bin": lambda: bytes(range(256)) * 8,
    "folder": None,
    "nowhere.png": None,
    "nowhere/photo.png": None,
    "photo.png/photo.png": None,
    "broken-link.png": None,
    "looping-link.png": None,
    "/dev/null": None,
    "": None,
    " ": None,
    "file:///etc/hostname": None,
    "ftp://127.0.0.1/photo.png": None,
    "data:image/png;base64,AAAA": None,
    "http://": None,
    "http://[::1/photo.png": None,
    "http://no host/photo.png": None,
    "http://127.0.0.1:9/photo.png": None,
    "http://127.0.0.1:99999/photo.png": None,
    "http://127.0.0.1:port/photo.png": None,
    "http://name:password@127.0.0.1/photo.png": None,
    "http://b..ücher/photo.png": None,
    os.fsdecode(b"http://127.0.0.1/\xff"): None,
    "{site}/nowhere.png": None,
    "{site}/text.png": None,
    "{site}/folder/": None,
    "{site}/to-file": None,
    "{site}/to-ftp": None,
    "{site}/to-itself": None,
    "{site}/cut-short": None,
    "{site}/no-http": None,
    "{site}/error": None,
}
ON_THE_WEB = (
    *("{site}/photo.png", "{site}/bücher 梨.png", "{site}/b%C3%BCcher%20%E6%A2%A8.png", "{site}/two  spaces.png"),
    *("{site}/photo.png?a=ä b&c", "{site}/photo.png#part", "{site}/to-photo", "{site}/--help", "{site}/..%2Fphoto.png"),
)


def make_files() -> None:
    """The files of the table, in the current folder."""
    Path("folder").mkdir()
    for files in (READABLE, ANIMATED, TRANSPARENT, DEEP, DEEPER, VIDEOS, UNREADABLE):
        for name, data in files.items():
            if data is not None:
                Path(name).write_bytes(data())
    Path("photo.png").write_bytes(saved(photo(), "png"))
    Path("map.png").write_bytes(saved(Image.linear_gradient("L").resize(SIZE), "png"))
    Path("white.png").write_bytes(saved(Image.new("L", SIZE, 255), "png"))
    Path("link.png").symlink_to("photo.png")
    Path("broken-link.png").symlink_to("nowhere.png")
    Path("looping-link.png").symlink_to("looping-link.png")
    Path("there.png").write_bytes(b"there before")
    Path("rows.jsonl").write_text(json.dumps(GOOD))
    for name, (text, _) in MANIFESTS.items():
        Path(name).write_text(text)
    for name, files in MODELS.items():
        Path(name).mkdir()
        for file, text in files.items():
            Path(name, file).write_text(text)


def put(argument: str, location: str) -> tuple[str, ...]:
    return tuple(location if part == "{}" else part for part in PLACES[argument])


def picture_rows() -> Iterator[Row]:
    """Each file in each place."""
    for argument in PLACES:
        for name in (*READABLE, *ON_THE_WEB):
            yield Row(put(argument, name))
        for name in ANIMATED:
            yield Row(
                put(argument, name), said=f"Warning: {argument} {name!r} holds 2 pictures; only the first is used."
            )
        for name in TRANSPARENT:
            yield Row(put(argument, name), 2, f"{argument} {name!r} is transparent in places")
        for name in DEEP:
            if argument in ("MAP", "--mask"):
                yield Row(put(argument, name))
            else:
                yield Row(put(argument, name), 2, f"{argument} {name!r} has more than 8 bits")
        for name in DEEPER:
            yield Row(put(argument, name), 2, f"{argument} {name!r} ")
        for name in UNREADABLE:
            yield Row(put(argument, name), 2, f"{argument} {name!r} cannot be read: ")
        yield Row(put(argument, "-"), stdin=saved(photo(), "png"))
        for data in (b"", b"no picture"):
            yield Row(put(argument, "-"), 2, f"{argument} '-' cannot be read: ", data)
    for argument in list(PLACES)[1:]:
        yield Row(put(argument, "clip.mp4"), 2, f"{argument} 'clip.mp4' is a video; it takes a picture here")
    yield Row(put("IMAGE", "clip.mp4"), 2, "IMAGE 'clip.mp4' is a video, and Stable Diffusion XL edits pictures")
    for name in ("no-video.mp4", "nowhere.mp4", "{site}/nowhere.mp4"):
        yield Row(put("IMAGE", name), 2, f"IMAGE {name!r} cannot be read: ")
    for name in TRANSPARENT:
        yield Row((*put("IMAGE", name), "--overlay"))
    yield Row(("edit", "-", "-", PROMPT), 2, "stdin can be read once", b"")
    yield Row((*EDIT, "--control-image", "-", "--ip-adapter-image", "-"), 2, "stdin can be read once", b"")
    yield Row((*EDIT, "--control-image", "tall.png"), said="it is stretched")
    yield Row(put("MAP", "tall.png"), said="it is stretched")
    for argument in PLACES:
        yield Row(put(argument, "x" * 300), 2, "File name too long")


# Options

TAKEN = (
    *(("--steps", "3"), ("--guidance-scale", "0"), ("--guidance-scale", "1"), ("--guidance-scale", "1e-30")),
    *(("--guidance-scale", "30"), ("--guidance-scale=-0.0",), ("--seed", "0"), ("--seed", "4294967295")),
    *(("--strength", "0"), ("--strength", "1"), ("--strength", "1e-30"), ("--strength", "0.5"), ("--invert-map",)),
    *(("--overlay",), ("--crop", "0"), ("--crop", "1"), ("--crop", "65536"), ("--crop", "3", "--overlay")),
    ("--batch-guidance",),
    *(("--count", "2"), ("--count", "3", "--batch-size", "2"), ("--count", "2", "--seed", "4294967294")),
    *(("--dtype", "float32"), ("--device", "cpu")),
    *(("--negative", ""), ("--negative", "a red apple"), ("--model", "still-life"), ("--model", "still-life-flow")),
    ("--model", "still-life-flow", "--crop", "2", "--overlay"),
    ("--model", "still-life-flow", "--batch-guidance", "--negative", "a red apple"),
    *(("--control-image", "L.png", "--control-scale", scale) for scale in ("0", "0.5", "10")),
    *(("--control-image", "L.png", "--control-mode", mode) for mode in ("0", "1")),
    *(("--ip-adapter-image", "RGB.png", "--ip-adapter-scale", scale) for scale in ("0", "0.5", "10")),
    ("--control-image", "L.png", "--ip-adapter-image", "RGB.png", "--crop", "4"),
    *(("--out", name) for name in ("a.png", "a.PNG", "./a b.png", "folder/a.png", "ä\n梨.png", "--a.png")),
    ("--out", os.fsdecode(b"\xff.png")),
)
REFUSED = {
    "--steps": ("0", "-1", "1.5", "x", "", "nan", "1000000000", "9" * 40),
    "--guidance-scale": ("-1", "nan", "inf", "1e38", "1001", "x", ""),
    "--strength": ("-0.1", "1.1", "nan", "inf", "x", ""),
    "--seed": ("-1", "4294967296", "1.5", "x", "", "9" * 40),
    "--count": ("0", "-1", "x", "1000000000"),
    "--batch-size": ("0", "-1", "x", "1001"),
    "--crop": ("-1", "1.5", "x", "65537"),
    "--dtype": ("int8", "", "Float32"),
    "--device": ("abacus", "", "cuda:99", "cpu:x", os.fsdecode(b"\xff"), "meta"),
    "--control-mode": ("0", "-1", "x"),
    "--control-scale": ("1", "-1", "nan"),
    "--ip-adapter-scale": ("1", "-1", "inf"),
    "--ip-adapter": ("still-life",),
    "--controlnet": ("still-life",),
    "--negative": (os.fsdecode(b"\xff"), "\ud800"),
    "--lora": ("nowhere", "./nowhere.safetensors"),
    "--bogus": ("1",),
    "--out": (
        *("", ".", "a", "a.jpg", "folder", "nowhere/a.png", "there.png", "photo.png", "photo.png/a.png"),
        *("x" * 300 + ".png", "/dev/null", "looping-link.png"),
    ),
}
REFUSED_TOGETHER = {
    ("--seed", "4294967295", "--count", "3"): "--count 3",
    ("--control-image", "L.png", "--control-mode", "2"): "--control-mode is 2",
    ("--control-image", "L.png", "--control-mode", "99999999999"): "--control-mode is 99999999999",
    ("--control-image", "L.png", "--control-scale", "nan"): "--control-scale",
    ("--control-image", "L.png", "--controlnet", "still-life-union"): "--control-mode is needed",
    ("--control-image", "L.png", "--controlnet", "still-life", "--control-mode", "0"): "has no modes",
    ("--control-image", "L.png", "--controlnet", "folder"): "--controlnet 'folder'",
    ("--control-image", "L.png", "--controlnet", "a-list"): "--controlnet 'a-list'",
    ("--control-image", "L.png", "--model", "still-life-flow"): "--controlnet is needed",
    ("--ip-adapter-image", "L.png", "--ip-adapter", "nowhere"): "--ip-adapter 'nowhere'",
    ("--ip-adapter-image", "L.png", "--ip-adapter", "text.png"): "--ip-adapter 'text.png'",
    ("--ip-adapter-image", "L.png", "--model", "still-life-flow"): "--ip-adapter is needed",
    ("--count", "2", "--out", "there.png", "--seed", "1", "--steps", "x"): "--steps",
    ("--offload", "--device", "cpu"): "--offload",
    ("extra",): "extra",
}


def option_rows() -> Iterator[Row]:
    for options in TAKEN:
        yield Row((*EDIT, *options))
    for option, values in REFUSED.items():
        for value in values:
            yield Row((*EDIT, option, value), 2, option)
        yield Row((*EDIT, option), 2, option)  # without its value
    for options, said in REFUSED_TOGETHER.items():
        yield Row((*EDIT, *options), 2, said)
    yield Row((*EDIT, "--out", "/proc/a.png"), 1, "--out '/proc/a.png' cannot be written")
    yield Row((*EDIT, "--control-image", "L.png", "--controlnet", "owner/name"), 1, "--controlnet 'owner/name'")
    yield Row((*EDIT, "--lora", "owner/name"), 1, "--lora 'owner/name'")
    yield Row((*EDIT[:3], "", *EDIT[4:]), 2, "PROMPT is empty")
    for count in range(3):
        yield Row(("edit", *["photo.png"] * count), 2, ("IMAGE", "MAP", "PROMPT")[count])
    yield Row((*EDIT[:3], os.fsdecode(b"p\xe4r"), *EDIT[4:]), 2, "PROMPT is not UTF-8")
    for text in (" ", "\n", "梨 🍐", "a\x01b", "-", "'\"`$(x)", "{prompt} %s"):
        yield Row((*EDIT[:3], text, *EDIT[4:]))
    yield Row((*EDIT[:3], "pear " * 10_000, *EDIT[4:]), said="Warning: PROMPT has ")
    yield Row(("edit", "--steps", "1", "--", "-dash.png", "map.png", "--overlay"))
    for options in FAN_TAKEN:
        yield Row((*FAN, *options))
    for option, values in FAN_REFUSED.items():
        for value in values:
            yield Row((*FAN, option, value), 2, option)
    yield Row((*FAN, "--invert-map"), 2, "--invert-map needs MAP")
    yield Row((*FAN, "nowhere.png"), 2, "MAP 'nowhere.png' cannot be read")
    yield Row((*FAN[:2], "", *FAN[3:]), 2, "PROMPT is empty")
    yield Row(("--bogus",), 2, "--bogus")
    yield Row(("bogus",), 2, "bogus")
    yield Row(("demo", "--out", "nowhere"), 2, "nowhere")
    yield Row(("demo", "--out", "photo.png"), 2, "photo.png")
    yield Row(("demo", "extra"), 2, "extra")
    for name in ("", "x", "x/y/z", "x/a.b", "-/-"):
        yield Row(("publish", "--dry-run", "--", name), 2)
    yield Row(("publish", "ada/blocks", "--family", "nothing"), 2, "--family")
    yield Row(("publish", "ada/blocks", "--out", "new"), 2, "--out needs --dry-run")
    for arguments in (("--version",), ("--help",), ("edit", "-h"), ("demo", "-h"), ("fan", "-h"), ("publish", "-h")):
        yield Row(arguments)


def batch_rows() -> Iterator[Row]:
    for option, values in BATCH_REFUSED.items():
        for value in values:
            yield Row((*BATCH, option, value), 2, option)
        yield Row((*BATCH, option), 2, option)
    yield Row((*BATCH, "--overwrite"), 2, "--overwrite")
    yield Row(("batch", "rows.jsonl"), 2, "--out")
    yield Row(("batch", "-h"))


def manifest_rows() -> Iterator[Row]:
    """Each starts a worker."""
    for name, (_, said) in MANIFESTS.items():
        yield Row(("batch", name, "--out", "done"), 2, said)
    for name in ("nowhere.jsonl", "folder", "", "-"):
        yield Row(("batch", name, "--out", "done"), 2, "MANIFEST")


# Models

PIPELINE = {"_class_name": "StableDiffusionXLPipeline"}
MODELS = {
    "a-list": {"model_index.json": "[1, 2]", "config.json": "[1, 2]"},
    "a-number": {"model_index.json": "1"},
    "null": {"model_index.json": "null"},
    "no-json": {"model_index.json": "{"},
    "empty-json": {"model_index.json": ""},
    "no-class": {"model_index.json": "{}"},
    "class-number": {"model_index.json": '{"_class_name": 5}'},
    "class-unknown": {"model_index.json": '{"_class_name": "Nothing"}'},
    "class-video": {"model_index.json": '{"_class_name": "WanPipeline"}'},
    "class-evil": {"model_index.json": '{"_class_name": "../../os"}'},
    "no-parts": {"model_index.json": json.dumps(PIPELINE)},
    "part-number": {"model_index.json": json.dumps(PIPELINE | {"unet": 5})},
    "part-missing": {"model_index.json": json.dumps(PIPELINE | {"unet": ["diffusers", "UNet2DConditionModel"]})},
    "part-code": {
        "model_index.json": json.dumps(PIPELINE | {"unet": ["trap", "Trap"]}),
        "trap.py": "import os; os.mkdir('sprung')",
    },
    "modular-list": {"modular_model_index.json": "[]"},
    "modular-no-json": {"modular_model_index.json": "{"},
    "modular-no-hint": {
        "modular_model_index.json": json.dumps(
            {
                "_class_name": "StableDiffusionXLModularPipeline",
                "_blocks_class_name": "StableDiffusionXLAutoBlocks",
                "unet": ["diffusers", "UNet2DConditionModel", {"subfolder": "unet"}],
            }
        )
    },
}
NO_MODELS = (
    *("", " ", ".", "folder", "photo.png", "nowhere", "./nowhere", "/nowhere", "owner/name", "owner/name/more"),
    *("https://example.org/model", "-", "../x", "owner/" + "x" * 300, "ä/ö", os.fsdecode(b"a/\xff")),
)


def model_rows() -> Iterator[Row]:
    for name in NO_MODELS:
        yield Row((*EDIT, "--model", name), 1 if name == "owner/name" else 2, f"--model {name!r}")
    for name in MODELS:
        yield Row((*EDIT, "--model", name), 2, f"--model {name!r}")
    for name in ("", "folder", "text.png"):
        yield Row((*EDIT, "--lora", name), 2, f"--lora {name!r}")


def rows() -> list[Row]:
    return [*picture_rows(), *option_rows(), *batch_rows(), *manifest_rows(), *model_rows()]


# Running them


class Site(http.server.SimpleHTTPRequestHandler):
    """The current folder, and addresses that are no good."""

    def do_GET(self):
        port = self.server.server_port
        targets = {
            "/to-photo": "/photo.png",
            "/to-file": "file:///etc/hostname",
            "/to-ftp": f"ftp://127.0.0.1:{port}/photo.png",
            "/to-itself": "/to-itself",
        }
        if self.path in targets:
            self.send_response(302)
            self.send_header("Location", targets[self.path])
            self.end_headers()
        elif self.path == "/cut-short":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(Path("photo.png").read_bytes()[:1000])
        elif self.path == "/no-http":
            self.wfile.write(b"\0\1\2 hello\r\n")
        elif self.path == "/error":
            self.send_error(500)
        else:
            if self.path in ("/--help", "/..%2Fphoto.png"):
                self.path = "/photo.png"
            super().do_GET()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def table_folder() -> Iterator[str]:
    """A new current folder with the table's files, and the address of its web site."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        make_files()
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def lines_of(stderr: str) -> list[str]:
    """What was said besides warnings and bars."""
    return [line for line in re.split(r"[\n\r]", stderr) if line.strip() and not BAR.search(line)]


def snapshot() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def run_row(row: Row, site: str) -> str | None:
    """What is wrong with the end of a command line, None for nothing."""
    fill = lambda text: text.replace("{site}", site)  # noqa: E731
    before = snapshot()
    result = CliRunner().invoke(app, [fill(argument) for argument in row.arguments], input=row.stdin)
    after = snapshot()
    made = {name: data for name, data in after.items() if before.get(name) != data}
    for name in made:
        Path(name).unlink()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    return judge(row.code, fill(row.said), result.exit_code, result.stderr, made) or (
        "an old file was changed" if before.items() - after.items() else None
    )


def judge(wanted: int, said: str, code: int, stderr: str, made: dict[str, bytes]) -> str | None:
    lines = lines_of(stderr)
    errors = [line for line in lines if not line.startswith("Warning: ")]
    if code != wanted:
        return f"exit code {code}, not {wanted}: {errors}"
    if said not in stderr:
        return f"{said!r} is not said: {lines}"
    if PYTHON.search(stderr):
        return f"it speaks Python: {lines}"
    if len(errors) != (code != 0):
        return f"{len(errors)} lines: {errors}"
    if code != 0 and made:
        return f"it leaves {sorted(made)}"
    for name, data in made.items():
        with contextlib.suppress(diffdiff_files.UnreadableError):
            if diffdiff_files.open_image(data).format == "PNG":
                continue
        return f"{name!r} is no PNG"
    return None


# Processes

COMMAND = (sys.executable, "-m", "modular_diffdiff.cli")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(modular_diffdiff.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}


def start(*arguments: str, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT, **pipes)


def finish(process: subprocess.Popen, code: int, said: str) -> str | None:
    """What is wrong with how a process ended and with what it left, None for nothing; removes what it made."""
    _, stderr = process.communicate(timeout=300)
    if Path("there.png").read_bytes() != b"there before":
        return "the old file was changed"
    made = {path.name: path.read_bytes() for path in Path().glob("*out*.png")}
    left = list(Path().glob(".*partial"))
    for path in (*Path().glob("*out*.png"), *left):
        path.unlink()
    if left and code not in (-signal.SIGKILL, -signal.SIGTERM):  # hidden, of a write that was going on
        return f"it leaves {left}"
    if code < 0 or code == 130:  # a signal's: there is nothing to say
        return judge(0, said, 0 if process.returncode == code else process.returncode, stderr.decode(), made)
    return judge(code, said, process.returncode, stderr.decode(), made)


def full_disk() -> str | None:
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    process = start(*EDIT, "--out", "there.png", "--overwrite", preexec_fn=limit)
    return finish(process, 1, "--out 'there.png' cannot be written: File too large.")


def interrupted(how: signal.Signals, code: int) -> Callable[[], str | None]:
    def run() -> str | None:
        """While it writes one picture after another."""
        process = start(*EDIT, "--out", "out.png", "--count", "1000")
        while not list(Path().glob("out-*.png")):
            time.sleep(0.05)
        process.send_signal(how)
        return finish(process, code, "")

    return run


def two_at_once() -> str | None:
    processes = [start(*EDIT, "--out", "out.png", "--seed", str(seed)) for seed in (1, 2)]
    wrong = [finish(process, 0, "") for process in processes if process.wait(300) == 0]
    lost = [finish(process, 2, "--out 'out.png' exists") for process in processes if process.wait() != 0]
    return next(filter(None, (*wrong, *lost)), None) or (None if len(wrong) == 1 else f"{len(wrong)} of 2 ended with 0")


def piped() -> str | None:
    """Bash's process substitution is a path to a pipe."""
    code = (
        f"exec {sys.executable} -m modular_diffdiff.cli edit <(cat photo.png) <(cat map.png) x --steps 1 --out out.png"
    )
    process = subprocess.Popen(["bash", "-c", code], env=ENVIRONMENT, stdout=-1, stderr=-1)
    return finish(process, 0, "")


def shell(redirection: str, *arguments: str, code: int, said: str) -> Callable[[], str | None]:
    def run() -> str | None:
        command = ["bash", "-c", f'exec "$@" {redirection}', "bash", *COMMAND, *arguments]
        return finish(subprocess.Popen(command, env=ENVIRONMENT, stdout=-1, stderr=-1), code, said)

    return run


PROCESSES = {
    "a full disk": full_disk,
    "Ctrl-C": interrupted(signal.SIGINT, 130),
    "kill": interrupted(signal.SIGTERM, -signal.SIGTERM),
    "kill -9": interrupted(signal.SIGKILL, -signal.SIGKILL),
    "two at once": two_at_once,
    "pipes": piped,
    "a closed stdin": shell("<&-", "edit", "-", "map.png", "x", code=2, said="IMAGE '-' cannot be read"),
    "an endless stdin": shell("< /dev/zero", "edit", "-", "map.png", "x", code=2, said="it holds more than"),
    "a closed stdout": shell(">&-", *EDIT, "--out", "out.png", code=0, said=""),
}


def main() -> int:
    """Runs the table; the exit code is 1 if a row misbehaves."""
    table, wrong, started = rows(), 0, time.monotonic()
    with table_folder() as site:
        ends = [(str(row), run_row(row, site)) for row in table]
        ends += [(name, run()) for name, run in PROCESSES.items()]
        if Path("sprung").exists():
            ends.append(("part-code", "code that a model index names was run"))
    for name, end in ends:
        if end is not None:
            wrong += 1
            print(f"{name[:200]}\n    {end[:400]}")
    seconds = time.monotonic() - started
    print(f"{len(ends)} command lines, {wrong} misbehave; {seconds:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    constants.HF_HUB_OFFLINE = True  # nobody is asked for owner/name
    sys.exit(main())
