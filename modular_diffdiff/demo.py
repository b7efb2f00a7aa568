"""The contact sheet of `modular-diffdiff demo`: still lifes, change maps, and what the embedded checkpoint does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont

from . import loading
from .still_life import EDGES, GUIDANCE_SCALE
from .still_life.scene import SIZE, Scene, render


STEPS, SEED = 25, 0
TILE, GAP, MARGIN = 256, 16, 32
TITLE_SIZE, CAPTION_SIZE = 28, 24  # readable at half the size, as READMEs show it
PAPER, INK, EDGE = (255, 255, 255), (32, 32, 32), (160, 160, 160)
STEERED = Scene("apple", "green", "striped", light=0.3)
STEERED_TITLE = "Right half free: an image prompt gives the colour (IP-Adapter), edges the shape (ControlNet)"


@dataclass(frozen=True)
class Result:
    """One edit of a row's scene: colour and kind to turn it into, the change map (SIZE, SIZE) in [0, 1], a caption."""

    target: str
    change_map: np.ndarray
    caption: str


@dataclass(frozen=True)
class Row:
    """One kind of map, shown on one scene."""

    title: str
    scene: Scene
    results: list[Result]


@dataclass(frozen=True)
class Steered:
    """One edit that a second picture steers.

    Attributes:
        prompt: What the released half shall show.
        guide: The second picture.
        guide_caption: What it is.
        given_as: The input that it is given as.
        model: The companion of the checkpoint that takes it, as `loading.Model` names it.
    """

    prompt: str
    guide: PIL.Image.Image
    guide_caption: str
    given_as: str
    model: dict[str, Any]


def half_map() -> np.ndarray:
    """(SIZE, SIZE): the left half is kept (1), the right half is free (0)."""
    return np.where(np.arange(SIZE) < SIZE // 2, 1, 0) * np.ones((SIZE, 1))


def gradient_map() -> np.ndarray:
    """(SIZE, SIZE): from kept (1) on the left to free (0) on the right."""
    return np.linspace(1, 0, SIZE) * np.ones((SIZE, 1))


def plan_rows() -> list[Row]:
    """What the sheet shows: a half map, a gradient, and a ramp of strengths."""

    def quoted(change_map: np.ndarray, *targets: str) -> list[Result]:
        return [Result(target, change_map, f"“{target}”") for target in targets]

    return [
        Row(
            "Half: the left side is kept, the right side is free",
            Scene("apple", "red", "striped", light=0.3),
            quoted(half_map(), "green pear", "blue cup", "purple pear"),
        ),
        Row(
            "Gradient: the further right, the more may change",
            Scene("cup", "blue", "tabletop", light=0.3, seed=1),
            quoted(gradient_map(), "blue apple", "purple pear", "green bottle"),
        ),
        Row(
            "One grey all over, a ramp of strengths: “orange apple”",
            Scene("pear", "green", "checked", light=0.3, seed=2),
            [Result("orange apple", np.full((SIZE, SIZE), 1 - s), f"strength {s}") for s in (0.25, 0.5, 0.75)],
        ),
    ]


def plan_steered() -> list[Steered]:
    """What the sheet's last row shows: an image prompt, and edges, each for the right half of `STEERED`."""
    return [
        Steered(
            "a pear on a striped background",
            PIL.Image.fromarray(render(Scene("apple", "orange", "plain", seed=3))),
            "image prompt",
            "ip_adapter_image",
            {"ip_adapter": loading.EMBEDDED, "ip_adapter_scale": 1.0},
        ),
        Steered(
            "a blue bottle on a striped background",
            PIL.Image.open(EDGES).convert("RGB"),
            "edges",
            "control_image",
            {"controlnet": loading.EMBEDDED},
        ),
    ]


def run_steered(steered: Steered) -> PIL.Image.Image:
    """`STEERED` with its right half free."""
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32", **steered.model), GUIDANCE_SCALE)
    return pipe(
        prompt=steered.prompt,
        image=PIL.Image.fromarray(render(STEERED)),
        diffdiff_map=half_map(),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
        output="images",
        **{steered.given_as: steered.guide},
    )[0]


def run_rows(pipe, rows: list[Row]) -> list[list[PIL.Image.Image]]:
    """The edited pictures of each row, all of them in one batch."""
    planned = [(row.scene, result) for row in rows for result in row.results]
    pictures = iter(
        pipe(
            prompt=[_prompt(scene, result.target) for scene, result in planned],
            image=[PIL.Image.fromarray(render(scene)) for scene, _ in planned],
            diffdiff_map=[result.change_map for _, result in planned],
            num_inference_steps=STEPS,
            generator=[torch.Generator().manual_seed(SEED) for _ in planned],
            output="images",
        )
    )
    return [[next(pictures) for _ in row.results] for row in rows]


def _prompt(scene: Scene, target: str) -> str:
    colour, kind = target.split()
    return replace(scene, colour=colour, kind=kind).caption


def shown_map(results: list[Result]) -> PIL.Image.Image:
    """The maps of a row as one picture: an upright strip of each, which is the map itself where they are one."""
    strip = np.arange(SIZE) * len(results) // SIZE
    values = np.stack([result.change_map for result in results])[strip, :, np.arange(SIZE)].T
    return PIL.Image.fromarray(np.rint(values * 255).astype(np.uint8))


def tile_corner(row: int, column: int) -> tuple[int, int]:
    """Left and top, in pixels of the sheet, of a row's tile; the row's title is above it and a caption below."""
    above, below = 2 * TITLE_SIZE, 2 * CAPTION_SIZE
    return MARGIN + column * (TILE + GAP), MARGIN + above + row * (above + TILE + below + GAP)


def draw_sheet(rows: list[tuple[str, list[tuple[PIL.Image.Image, str]]]]) -> PIL.Image.Image:
    """A contact sheet of titled rows of captioned pictures; maps (mode L) keep their pixels when they are enlarged."""
    title_font, caption_font = (ImageFont.load_default(size) for size in (TITLE_SIZE, CAPTION_SIZE))
    right, bottom = tile_corner(len(rows), max(len(tiles) for _, tiles in rows))
    sheet = PIL.Image.new("RGB", (right - GAP + MARGIN, bottom - 2 * TITLE_SIZE - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (title, tiles) in enumerate(rows):
        left, top = tile_corner(i, 0)
        draw.text((left, top - TITLE_SIZE), title, INK, title_font, anchor="lm")
        for j, (picture, caption) in enumerate(tiles):
            left, top = tile_corner(i, j)
            resampling = PIL.Image.Resampling.NEAREST if picture.mode == "L" else PIL.Image.Resampling.LANCZOS
            draw.rectangle((left - 1, top - 1, left + TILE, top + TILE), outline=EDGE)
            sheet.paste(picture.resize((TILE, TILE), resampling), (left, top))
            draw.text((left + TILE / 2, top + TILE + CAPTION_SIZE), caption, INK, caption_font, anchor="mm")
    return sheet


def _original(scene: Scene) -> tuple[PIL.Image.Image, str]:
    return PIL.Image.fromarray(render(scene)), f"original: {scene.colour} {scene.kind}"


def make_sheet() -> PIL.Image.Image:
    """The contact sheet, made by the embedded checkpoint and its companions on the CPU."""
    rows = plan_rows()
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    drawn = [
        (
            row.title,
            [
                _original(row.scene),
                (shown_map(row.results), "change map"),
                *((picture, result.caption) for picture, result in zip(pictures, row.results, strict=True)),
            ],
        )
        for row, pictures in zip(rows, run_rows(pipe, rows), strict=True)
    ]
    steered = [_original(STEERED)]
    for edit in plan_steered():
        steered += [(edit.guide, edit.guide_caption), (run_steered(edit), f"“{edit.prompt.split(' on ')[0]}”")]
    return draw_sheet([*drawn, (STEERED_TITLE, steered)])
