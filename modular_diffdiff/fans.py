"""Strength fans: one edit at several strengths, side by side."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import PIL.Image
from PIL import ImageDraw, ImageFont

from .blocks import diffdiff_docs, diffdiff_fan, diffdiff_make_map, diffdiff_picture_checks, diffdiff_refusals


STRENGTHS = diffdiff_docs.DEFAULTS["fan_strengths"]
# Longer side of a picture on the sheet, in pixels: smaller ones are enlarged by a whole factor, larger ones reduced.
LEAST_SIDE, LARGEST_SIDE = 256, 1024
# Parts of a picture's longer side on the sheet.
LABEL, GAP = 1 / 14, 1 / 16
PAPER, INK = (255, 255, 255), (32, 32, 32)


@dataclass(frozen=True)
class StrengthFan:
    """One edit at several strengths, all from the same noise.

    Attributes:
        strengths: Rising, in [0, 1].
        results: The edit at each of them.
        strips: The edit under a map that is cut into upright strips, one for each strength, rising from left to right.
    """

    strengths: tuple[float, ...]
    results: list[Any]
    strips: Any


def fan(
    pipe, image: Any, prompt: str, diffdiff_map: Any = None, strengths: tuple[float, ...] = STRENGTHS, **inputs: Any
) -> StrengthFan:
    """One edit at several strengths, as one batch from the same noise.

    Args:
        pipe: Any pipeline with a change map, of any family. It stays as it is.
        image: The picture to edit.
        prompt: What to draw in the changed regions.
        diffdiff_map: The change map at strength 1; by default everything may change, or what other inputs say
            (`map_text` and the like).
        strengths: 2 to 100 rising numbers in [0, 1].
        inputs: Any other inputs of `pipe`, but for those that would make it several edits.

    Raises:
        BadInputError: If `pipe` has no block `read_map`, or one of its blocks refuses an input.
    """
    sources = [name for source in diffdiff_make_map.SOURCES for name in source.needs if inputs.get(name) is not None]
    if diffdiff_map is None and not sources and not inputs.get("invert_diffdiff_map"):  # which is refused without a map
        _, height, width = diffdiff_picture_checks.image_geometry(image, transparent=True)
        diffdiff_map = PIL.Image.new("L", (width, height))
    *results, strips = with_fan(pipe)(
        image=image, prompt=prompt, diffdiff_map=diffdiff_map, fan_strengths=strengths, output="images", **inputs
    )
    return StrengthFan(tuple(strengths), results, strips)


def with_fan(pipe):
    """A pipeline of the same components and blocks, and `DiffDiffFanStep` right before `read_map`."""
    blocks = pipe.blocks  # a copy
    front = blocks.sub_blocks.get("diffdiff", blocks).sub_blocks  # of automatic blocks, those with a map
    if "read_map" not in front:
        takes = "a pipeline with a change map, whose blocks have one named `read_map`"
        diffdiff_refusals.refuse("pipe", f"one of {type(blocks).__name__}", takes)
    front.pop("fan", None)
    front.insert("fan", diffdiff_fan.DiffDiffFanStep(), list(front).index("read_map"))
    fanned = copy.copy(pipe)  # of a new one, `update_components` refuses some image processors
    fanned._blocks = blocks
    return fanned


def draw_fan(fan: StrengthFan) -> PIL.Image.Image:
    """A sheet of a fan of PIL images: the results in a row, each above its strength, and the strips above theirs."""
    tiles = [_tile(picture) for picture in (*fan.results, fan.strips)]
    width, height = tiles[0].size
    font, gap = ImageFont.load_default(round(max(width, height) * LABEL)), round(max(width, height) * GAP)
    captions = [f"strength {strength:.3g}" for strength in fan.strengths]
    column = max(width, round(max(map(font.getlength, captions))))
    lefts = [gap + place * (column + gap) + (column - width) // 2 for place in range(len(tiles))]
    lefts[-1] += gap  # set apart
    below = gap + height
    sheet = PIL.Image.new("RGB", (len(tiles) * (column + gap) + 2 * gap, below + round(2 * font.size)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for tile, left in zip(tiles, lefts, strict=True):
        sheet.paste(tile, (left, gap), tile.getchannel("A"))
    labels = [(caption, left + width / 2) for caption, left in zip(captions, lefts[:-1], strict=True)]
    for place in range(len(captions) + 1):
        edge = lefts[-1] + place * (width - 1) / len(captions)
        draw.line((edge, below, edge, below + gap / 3), INK, max(gap // 16, 1))
    for text, middle in [*labels, *_strip_labels(fan.strengths, lefts[-1], width, font)]:
        draw.text((middle, below + font.size), text, INK, font, anchor="mm")
    return sheet


def _strip_labels(strengths: tuple[float, ...], left: int, width: int, font) -> list[tuple[str, float]]:
    """Each label and its middle, of as many strips as there is room for."""
    texts, strip = [f"{strength:.3g}" for strength in strengths], width / len(strengths)
    every = math.ceil(max(font.getlength(f" {text} ") for text in texts) / strip)
    labels = [(text, left + (place + 0.5) * strip) for place, text in enumerate(texts)]
    return labels[::every]


def _tile(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture in RGBA at its size on the sheet."""
    longest, picture = max(picture.size), picture.convert("RGBA")
    if longest < LEAST_SIDE:
        factor = -(-LEAST_SIDE // longest)
        return picture.resize((factor * picture.width, factor * picture.height), PIL.Image.Resampling.NEAREST)
    if longest > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), PIL.Image.Resampling.LANCZOS)
    return picture
