"""What `modular-diffdiff demo` draws: a contact sheet of edits, and pictures to try the commands on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines import SequentialPipelineBlocks
from PIL import ImageDraw, ImageFont

from . import loading
from .blocks.diffdiff_model_sources import DiffDiffMapTextStep
from .blocks.diffdiff_shape import DiffDiffShapeMapStep
from .still_life import EDGES, GUIDANCE_SCALE
from .still_life.scene import SIZE, Item, Scene, masks, render


STEPS = 15
GAP, MARGIN = 16, 16
TITLE_SIZE, CAPTION_SIZE = 28, 24  # readable at half the size, as READMEs show it
PAPER, INK, EDGE = (255, 255, 255), (32, 32, 32), (160, 160, 160)
TWO = Scene("apple", "red", "tabletop", (0.28, 0.56), light=0.3, seed=1, beside=Item("cup", "blue"))
STEERED = Scene("apple", "green", "striped", light=0.3)
STEERED_SEED = 5
STEERED_TITLE = "Left third kept: an image prompt gives the colour (IP-Adapter), edges the shape (ControlNet)"


@dataclass(frozen=True)
class Edit:
    """One edit of a row's scene: its caption on the sheet, its prompt, its change map (SIZE, SIZE) in [0, 1]."""

    caption: str
    prompt: str
    change_map: np.ndarray


@dataclass(frozen=True)
class Row:
    """One kind of map, shown on one scene; `seed` is that of the noise."""

    title: str
    scene: Scene
    edits: list[Edit]
    seed: int


@dataclass(frozen=True)
class Steered:
    """One edit that a second picture steers.

    Attributes:
        prompt: What the released part shows.
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


def keep_left(share: float) -> np.ndarray:
    """(SIZE, SIZE): kept (1) up to this share of the width, and free (0) from there on."""
    return np.where(np.arange(SIZE) < round(share * SIZE), 1, 0) * np.ones((SIZE, 1))


def gradient_map() -> np.ndarray:
    """(SIZE, SIZE): the left fifth is kept (1), the right fifth is free (0), and it falls evenly between them."""
    return np.clip(np.linspace(4, -1, SIZE) / 3, 0, 1) * np.ones((SIZE, 1))


def map_of_words(scene: Scene, words: str) -> np.ndarray:
    """(SIZE, SIZE): free (0) where the embedded segmenter finds the words and near it, kept (1) elsewhere."""
    blocks = {"map_text": DiffDiffMapTextStep(), "shape_map": DiffDiffShapeMapStep()}
    pipe = SequentialPipelineBlocks.from_blocks_dict(blocks).init_pipeline()
    kinds = tuple((name, kind) for name, (kind, _) in DiffDiffMapTextStep.models.items())
    pipe.update_components(**loading.load_map_model(loading.EMBEDDED, "--segmenter", kinds))
    made = pipe(
        image=PIL.Image.fromarray(render(scene)),
        map_text=words,
        map_text_threshold=0.5,
        map_grow=12,
        map_feather=4,
        output="diffdiff_map",
    )
    return made[0, 0].numpy()


def row_of_two() -> Row:
    others = Item("apple", "green"), Item("lemon", "yellow"), Item("pear", "purple")
    change_map = map_of_words(TWO, "the cup")
    edits = [Edit(f"“{o.colour} {o.kind}”", replace(TWO, beside=o).caption, change_map) for o in others]
    return Row("In words: “the cup” and what is near it may change", TWO, edits, seed=0)


def row_of_halves() -> Row:
    scene = Scene("apple", "red", "striped", light=0.3)
    edits = [
        Edit(f"“{c} apple”", replace(scene, colour=c).caption, keep_left(1 / 2)) for c in ("green", "yellow", "blue")
    ]
    return Row("Half: the left side is kept, the right side is free", scene, edits, seed=4)


def row_of_gradients() -> Row:
    scene = Scene("pear", "yellow", "striped", light=0.3, seed=1)
    others = "checked", "plain", "tabletop"
    edits = [Edit(f"“{o}”", replace(scene, background=o).caption, gradient_map()) for o in others]
    return Row("Gradient: the further right, the more may change", scene, edits, seed=2)


def row_of_strengths() -> Row:
    scene = Scene("pear", "green", "checked", light=0.3, seed=2)
    prompt = replace(scene, kind="apple").caption
    edits = [Edit(f"strength {s}", prompt, np.full((SIZE, SIZE), 1 - s)) for s in (0.3, 0.45, 0.6)]
    return Row("One grey all over, a ramp of strengths: “green apple”", scene, edits, seed=1)


def plan_rows() -> list[Row]:
    """What the sheet shows: one object of two, named in words, a half map, a gradient, and a ramp of strengths."""
    return [row_of_two(), row_of_halves(), row_of_gradients(), row_of_strengths()]


def plan_steered() -> list[Steered]:
    """What the sheet's last row shows: an image prompt, and edges, each for `STEERED`."""
    return [
        Steered(
            "an apple on a striped background",
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
    """`STEERED` with its left third kept."""
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32", **steered.model), GUIDANCE_SCALE)
    return pipe(
        prompt=steered.prompt,
        image=PIL.Image.fromarray(render(STEERED)),
        diffdiff_map=keep_left(1 / 3),
        overlay=True,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(STEERED_SEED),
        output="images",
        **{steered.given_as: steered.guide},
    )[0]


def run_rows(pipe, rows: list[Row]) -> list[list[PIL.Image.Image]]:
    """The edited pictures of each row, all of them in one batch."""
    planned = [(row, edit) for row in rows for edit in row.edits]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*never release")  # the lightest greys of soft edges
        pictures = iter(
            pipe(
                prompt=[edit.prompt for _, edit in planned],
                image=[PIL.Image.fromarray(render(row.scene)) for row, _ in planned],
                diffdiff_map=[edit.change_map for _, edit in planned],
                overlay=True,
                num_inference_steps=STEPS,
                generator=[torch.Generator().manual_seed(row.seed) for row, _ in planned],
                output="images",
            )
        )
    return [[next(pictures) for _ in row.edits] for row in rows]


def shown_map(edits: list[Edit]) -> PIL.Image.Image:
    """The maps of a row as one picture: an upright strip of each, which is the map itself where they are one."""
    strip = np.arange(SIZE) * len(edits) // SIZE
    values = np.stack([edit.change_map for edit in edits])[strip, :, np.arange(SIZE)].T
    return PIL.Image.fromarray(np.rint(values * 255).astype(np.uint8))


def tile_corner(column: int, titled: bool) -> tuple[int, int]:
    """Left and top of a tile, in pixels of its row, which leaves one for its outline."""
    return 1 + column * (SIZE + GAP), 1 + (2 * TITLE_SIZE if titled else 0)


def draw_row(title: str, tiles: list[tuple[PIL.Image.Image, str]]) -> PIL.Image.Image:
    """Pictures of SIZE x SIZE pixels, each above its caption, under a title if there is one."""
    title_font, caption_font = (ImageFont.load_default(size) for size in (TITLE_SIZE, CAPTION_SIZE))
    corners = [tile_corner(column, bool(title)) for column in range(len(tiles))]
    right, bottom = (edge + SIZE + 1 for edge in corners[-1])
    row = PIL.Image.new("RGB", (right, bottom + 2 * CAPTION_SIZE), PAPER)
    draw = ImageDraw.Draw(row)
    draw.text((1, TITLE_SIZE), title, INK, title_font, anchor="lm")
    for (left, top), (picture, caption) in zip(corners, tiles, strict=True):
        draw.rectangle((left - 1, top - 1, left + SIZE, top + SIZE), outline=EDGE)
        row.paste(picture, (left, top))
        draw.text((left + SIZE / 2, top + SIZE + CAPTION_SIZE), caption, INK, caption_font, anchor="mm")
    return row


def draw_sheet(rows: list[tuple[str, list[tuple[PIL.Image.Image, str]]]]) -> PIL.Image.Image:
    """A contact sheet: rows of captioned pictures of SIZE x SIZE pixels, titled or not, pixel for pixel."""
    drawn = [draw_row(title, tiles) for title, tiles in rows]
    width, height = max(row.width for row in drawn), sum(row.height + GAP for row in drawn) - GAP
    sheet = PIL.Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    top = MARGIN
    for row in drawn:
        sheet.paste(row, (MARGIN, top))
        top += row.height + GAP
    return sheet


def draw_examples() -> list[PIL.Image.Image]:
    """What the commands of the documentation take: two objects, a half map, a mask of the cup, edges of a bottle."""
    edges = PIL.Image.new("L", (SIZE, SIZE))
    edges.paste(PIL.Image.open(EDGES), (56, 20))
    half = shown_map([Edit("", "", keep_left(1 / 2))])
    return [PIL.Image.fromarray(render(TWO)), half, PIL.Image.fromarray(masks(TWO)["cup"]), edges]


def make_sheet() -> PIL.Image.Image:
    """The contact sheet, made by the embedded checkpoint and its companions on the CPU."""
    rows = plan_rows()
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    drawn = [
        (
            row.title,
            [
                (PIL.Image.fromarray(render(row.scene)), "original"),
                (shown_map(row.edits), "change map"),
                *((picture, edit.caption) for picture, edit in zip(pictures, row.edits, strict=True)),
            ],
        )
        for row, pictures in zip(rows, run_rows(pipe, rows), strict=True)
    ]
    steered = [(PIL.Image.fromarray(render(STEERED)), "original")]
    for edit in plan_steered():
        steered += [(edit.guide, edit.guide_caption), (run_steered(edit), f"“{edit.prompt.split(' on ')[0]}”")]
    return draw_sheet([*drawn, (STEERED_TITLE, steered)])
