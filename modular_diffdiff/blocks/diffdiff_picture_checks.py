"""Which images, and which control images, a run takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch

from . import diffdiff_asked, diffdiff_docs, diffdiff_pixels, diffdiff_refusals


BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


def image_geometry(image: Any, transparent: bool = False) -> tuple[int, int, int]:
    """Count, height and width of an image or of a batch of equal size; refuses anything else.

    Images may be `transparent` where their alpha is given back; no model sees it.
    """
    kind = diffdiff_docs.KINDS["image"]
    if not kind.accepts(image):
        refuse("image", image, kind.takes)
    images = image if isinstance(image, list) else [image]
    counts, sizes = zip(*(_count_and_size(item, transparent) for item in images), strict=True)
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(set(sizes)))
        raise BadInputError(f"`image` holds images of different sizes ({listed}); a batch takes one size.")
    return sum(counts), *sizes[0]


def _count_and_size(image: Any, transparent: bool) -> tuple[int, tuple[int, int]]:
    if isinstance(image, PIL.Image.Image):
        if not transparent and image.has_transparency_data and image.convert("RGBA").getextrema()[-1][0] < 255:
            instead = "flatten it, drop its alpha with `image.convert('RGB')`, or keep it with `overlay=True`"
            refuse("image", image, f"opaque images: {instead}")
        check_bits("image", image)
        return 1, (image.height, image.width)
    pictures = diffdiff_pixels.split_images(image)
    floating = image.dtype.is_floating_point if isinstance(image, torch.Tensor) else image.dtype.kind == "f"
    described = f"`image` is a {type(image).__name__} of shape {tuple(image.shape)} and {image.dtype}"
    axis = -1 if isinstance(image, np.ndarray) else -3
    if image.ndim not in (3, 4) or image.shape[axis] != 3 or not floating:
        raise BadInputError(
            f"{described}; it takes floats with 3 colours: arrays (H, W, 3) or (B, H, W, 3), tensors (3, H, W) or "
            "(B, 3, H, W). Latents go into `image_latents`, with the image's encoder popped from the blocks."
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= -1 and high <= 1):
        raise BadInputError(f"{described} with values from {low:g} to {high:g}; they must lie in [0, 1].")
    return len(pictures), diffdiff_pixels.size_of(pictures[0])


def check_bits(name: str, image: PIL.Image.Image) -> None:
    if image.mode.startswith(("I", "F")):  # a conversion to RGB would clip them
        refuse(name, image, f"8-bit images, not mode {image.mode!r}; scale it to one first")


def check_control(control: Any, prompts: int | None) -> None:
    """Refuses what cannot be a control image or would be clipped, and more or fewer than there are prompts."""
    pictures = diffdiff_pixels.split_images(control)
    for picture in pictures:
        if isinstance(picture, PIL.Image.Image):
            check_bits("control_image", picture)
            continue
        axis, values = (-1 if isinstance(picture, np.ndarray) else -3), diffdiff_pixels.as_tensor(picture)
        if picture.ndim != 3 or picture.shape[axis] != 3:
            refuse("control_image", picture, "3 colours: arrays (H, W, 3), tensors (3, H, W), or batches of them")
        if not values.is_floating_point() or not values.isfinite().all():  # inpainting ControlNets take -1 too
            described = f"{type(picture).__name__} of {picture.dtype} from {values.min():g} to {values.max():g}"
            refuse("control_image", described, "finite floats, or PIL images")
    diffdiff_asked.check_count("control_image", len(pictures), prompts or len(pictures))
