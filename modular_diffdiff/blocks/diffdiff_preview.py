"""Front: a picture of how strongly each pixel may change."""

from __future__ import annotations

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from . import diffdiff_block, diffdiff_map, diffdiff_pixels, diffdiff_trajectory


# What changes wholly is of this colour, over a grey picture.
CHANGED, OPACITY = (214, 39, 40), 0.75
LEGEND, MARGIN = 48, 16


def draw_preview(image: PIL.Image.Image, strengths: np.ndarray) -> PIL.Image.Image:
    """A picture in grey, redder the more each pixel may change, above a scale from kept to free.

    Args:
        strengths: (H, W) in [0, 1], of the picture's size: 0 where it is kept, 1 where all may change.
    """
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    shown = PIL.Image.fromarray(_tint(grey, strengths))
    sheet = PIL.Image.new("RGB", (shown.width, shown.height + LEGEND), "white")
    sheet.paste(shown)
    length = max(shown.width - 2 * MARGIN, 1)
    ramp = np.tile(np.linspace(0, 1, length), (LEGEND // 4, 1))
    top = shown.height + LEGEND // 8
    sheet.paste(PIL.Image.fromarray(_tint(np.full((*ramp.shape, 3), 200, np.float32), ramp)), (MARGIN, top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LEGEND // 3)
    for text, place, anchor in (("kept", MARGIN, "lt"), ("free", MARGIN + length, "rt")):
        draw.text((place, top + LEGEND // 4 + 4), text, (32, 32, 32), font, anchor=anchor)
    return sheet


def _tint(pixels: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of pixels in [0, 255] under the colour of what changes."""
    weights = OPACITY * strengths[..., None]
    return np.rint((1 - weights) * pixels + weights * np.array(CHANGED)).astype(np.uint8)


class DiffDiffPreviewMapStep(diffdiff_block.DiffDiffBlock):
    """With `preview_map`, draws each final change map over its picture."""

    needs, takes, gives = ("placement",), ("preview_map",), ("map_preview",)

    def run(self, components, block_state, state) -> None:
        block_state.map_preview = None
        if block_state.preview_map:
            placement = block_state.placement
            keeps = [diffdiff_map.resize_map(keep, *placement.whole)[0, 0].numpy() for keep in placement.keeps]
            count = max(len(keeps), len(placement.originals))
            pairs = (diffdiff_trajectory.for_each_output(each, count) for each in (placement.originals, keeps))
            block_state.map_preview = [
                draw_preview(as_image(original), 1 - keep) for original, keep in zip(*pairs, strict=True)
            ]


def as_image(picture) -> PIL.Image.Image:
    """A picture in any form, floats in [0, 1], as a PIL image."""
    if isinstance(picture, PIL.Image.Image):
        return picture
    return PIL.Image.fromarray(diffdiff_pixels.to_dtype(diffdiff_pixels.as_array(picture), np.uint8))
