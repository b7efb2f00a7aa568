"""Pixels around the model: any size in, the same size out, and what is kept comes back as it was."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from . import diffdiff_docs, diffdiff_map


MAP_INPUTS = ("diffdiff_map", "invert_diffdiff_map", "strength")


def cell_of(components) -> int:
    """Pixels that a latent element is high and wide; 1 where latents are pixels."""
    return getattr(components, "vae_scale_factor", 1)


def pad_to_multiple(pixels: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pads (B, C, H, W) on the right and below, by reflection, to the next multiple in height and width."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="reflect")


def split_images(images: Any) -> list[Any]:
    """Each image of a batch: a PIL image, an array (H, W, 3) or a tensor (3, H, W)."""
    if isinstance(images, list):
        return [image for item in images for image in split_images(item)]
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


def size_of(image: Any) -> tuple[int, int]:
    """Height and width of an image as `split_images` gives it."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    return tuple(image.shape[:2] if isinstance(image, np.ndarray) else image.shape[1:])


def cut(image: Any, box: tuple[int, int, int, int]) -> Any:
    """The part of an image within a box (left, top, right, bottom), in the image's own form."""
    left, top, right, bottom = box
    if isinstance(image, PIL.Image.Image):
        return image.crop(box)
    return image[top:bottom, left:right] if isinstance(image, np.ndarray) else image[:, top:bottom, left:right]


def changed_pixels(keeps: list[torch.Tensor]) -> torch.Tensor:
    """(H, W) bool: where any of these (1, 1, H, W) lets anything change."""
    return torch.stack([(keep < 1 - diffdiff_map.KEEP_TOLERANCE)[0, 0] for keep in keeps]).any(0)


def box_around(changed: torch.Tensor, padding: int, cell: int) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of all that changes in (H, W), and `padding` pixels around it.

    It stays within the picture. Its sides are multiples of `cell`, and at least one, where the picture has the room.
    """
    sides = []
    for axis, size in ((0, changed.shape[1]), (1, changed.shape[0])):
        places = changed.any(axis).nonzero()[:, 0]
        low, high = (places[0].item() - padding, places[-1].item() + 1 + padding) if len(places) else (0, 0)
        low, high = max(low, 0), min(high, size)
        side = min(max(-(-(high - low) // cell), 1) * cell, size)
        low = min(low, size - side)
        sides.append((low, low + side))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def original_weights(keep: torch.Tensor, feather: int) -> torch.Tensor:
    """How much of the original comes back in each pixel: all of it where it is kept whole, and less beside that.

    What is kept in part has its share of the original already, and gets no more.

    Args:
        keep: (1, 1, H, W) in [0, 1].
        feather: Width in pixels of the seam, in which the weight falls to 0; it lies in what changes freely.

    Returns:
        (H, W) in [0, 1].
    """
    whole = grown = (keep >= 1 - diffdiff_map.KEEP_TOLERANCE).float()
    total = grown
    for _ in range(feather):
        grown = F.max_pool2d(grown, 3, stride=1, padding=1)
        total = total + grown
    seam = torch.where(keep <= diffdiff_map.KEEP_TOLERANCE, total / (feather + 1), 0)
    return torch.where(whole == 1, 1.0, seam)[0, 0]


def lay_over(original: np.ndarray, edited: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The original where its weight is 1, to the last bit, and a blend elsewhere.

    Args:
        original: (H, W, 3), uint8 or float.
        edited: The same of the edit.
        weights: (H, W), of the original.
    """
    w = weights[..., None]
    blend = w * original.astype(np.float32) + (1 - w) * edited.astype(np.float32)
    if original.dtype == np.uint8:
        blend = np.rint(blend)
    return np.where(w == 1, original, blend.astype(original.dtype))


def size_without_padding(block_state, height: int, width: int) -> tuple[int, int]:
    """Of a result of this size, what shows the image; a model that sizes what it gets has sized the padding too."""
    padded = getattr(block_state, "padded_size", None) or (height, width)
    sides = zip(block_state.image_size or padded, padded, (height, width), strict=True)
    return tuple(round(image * result / canvas) for image, canvas, result in sides)


def keep_at_size(block_state, change_maps: Any, sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    """`keep` of every image at the image's size, (1, 1, H, W) each; one map serves several images."""
    maps = diffdiff_map.load_maps(change_maps)
    if len(maps) == 1:
        maps = maps * len(sizes)
    sizes = sizes * len(maps) if len(sizes) == 1 else sizes
    keeps = []
    for values, (height, width) in zip(maps, sizes, strict=True):
        values = diffdiff_map.resize_map(values, height, width)
        values = 1 - values if block_state.invert_diffdiff_map else values
        keeps.append(diffdiff_map.turn_down(values, block_state.strength))
    return keeps


class DiffDiffCropToChangeStep(ModularPipelineBlocks):
    """Cuts image and map to what changes, so that a small edit of a large picture costs what a small picture costs."""

    @property
    def description(self) -> str:
        return (
            "Step that, with `padding_map_crop`, cuts the image and its map to the box that changes and the padding "
            "around it; `overlay` puts the edited box back."
        )

    @property
    def inputs(self) -> list[InputParam]:
        names = ("image", *MAP_INPUTS, "padding_map_crop", "crops_coords", "height", "width")
        return [diffdiff_docs.input_param(name) for name in names]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param(name) for name in ("whole_image", "whole_map", "crops_coords")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        padding = block_state.padding_map_crop
        block_state.whole_image = block_state.whole_map = None
        if padding is not None:
            images = split_images(block_state.image)
            height, width = size_of(images[0])
            maps = diffdiff_map.load_maps(block_state.diffdiff_map)
            diffdiff_map.warn_of_stretching(maps, height, width)
            changed = changed_pixels(keep_at_size(block_state, maps, [(height, width)]))
            if not changed.any():
                warnings.warn("`diffdiff_map` changes nothing: the image comes back as it was.", stacklevel=2)
            box = box_around(changed, padding, cell_of(components))
            if block_state.height is not None and block_state.width is not None and changed.any():
                # upstream's box has the ratio of the size that it is edited at
                mask = PIL.Image.fromarray(changed.numpy())
                box = VaeImageProcessor.get_crop_region(mask, block_state.width, block_state.height, padding)
            block_state.whole_image, block_state.whole_map = block_state.image, block_state.diffdiff_map
            block_state.image = [cut(image, box) for image in images]
            block_state.diffdiff_map = [
                cut(diffdiff_map.resize_map(values, height, width)[0], box)[None] for values in maps
            ]
            block_state.crops_coords = box
        self.set_block_state(state, block_state)
        return components, state


class DiffDiffCropStep(ModularPipelineBlocks):
    """Cuts off what was padded before encoding, so that pictures come back at the image's size."""

    @property
    def description(self) -> str:
        return "Step that crops the decoded images to the size that the image had before it was padded."

    @property
    def inputs(self) -> list[InputParam]:
        names = ("image_size", "padded_size", "output_type")
        return [diffdiff_docs.input_param("images", required=True), *map(diffdiff_docs.input_param, names)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param("images")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        # latents given by the user have no size in pixels but their own
        if block_state.image_size is not None and block_state.output_type != "latent":
            images, pil, pt = block_state.images, block_state.output_type == "pil", block_state.output_type == "pt"
            whole = images[0].size[::-1] if pil else images.shape[2:] if pt else images.shape[1:3]
            height, width = size_without_padding(block_state, *whole)
            if pil:
                block_state.images = [image.crop((0, 0, width, height)) for image in images]
            else:
                block_state.images = images[..., :height, :width] if pt else images[:, :height, :width]
            block_state.padded_size = block_state.image_size  # none is left to cut
        self.set_block_state(state, block_state)
        return components, state


class DiffDiffOverlayStep(ModularPipelineBlocks):
    """Puts the original's pixels back where the map keeps them whole: they have been through no autoencoder."""

    @property
    def description(self) -> str:
        return (
            "Step that, with `overlay` or `padding_map_crop`, lays the original over the edit where the map keeps it "
            "whole: there the results have its pixels, byte for byte, and its size."
        )

    @property
    def inputs(self) -> list[InputParam]:
        names = (
            *("image", *MAP_INPUTS, "overlay", "overlay_feather"),
            *("whole_image", "whole_map", "crops_coords", "image_size", "padded_size", "output_type"),
        )
        return [diffdiff_docs.input_param("images", required=True), *map(diffdiff_docs.input_param, names)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param("images")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        cropped = block_state.whole_image is not None
        if cropped or block_state.overlay:
            originals = split_images(block_state.whole_image if cropped else block_state.image)
            sizes = [size_of(image) for image in originals]
            if cropped:
                block_state.image, block_state.diffdiff_map = block_state.whole_image, block_state.whole_map
            keeps = keep_at_size(block_state, block_state.diffdiff_map, sizes)
            outputs = _arrays(block_state.images, block_state.output_type)
            # what is padded is no part of the picture
            shown = [size_without_padding(block_state, *edited.shape[:2]) for edited in outputs]
            outputs = [edited[:height, :width] for edited, (height, width) in zip(outputs, shown, strict=True)]
            originals, keeps = _for_each(originals, len(outputs)), _for_each(keeps, len(outputs))
            results = []
            for original, keep, edited in zip(originals, keeps, outputs, strict=True):
                box = block_state.crops_coords if cropped else (0, 0, *size_of(original)[::-1])
                results.append(_paste(original, edited, keep, box, block_state.overlay_feather))
            block_state.images = _as_output(results, originals, block_state)
        self.set_block_state(state, block_state)
        return components, state


def _for_each(items: list, outputs: int) -> list:
    """The item of each output: the outputs of one prompt lie together."""
    return [items[k * len(items) // outputs] for k in range(outputs)]


def _arrays(images: Any, output_type: str) -> list[np.ndarray]:
    """Each output as an array (H, W, 3): uint8 of PIL images, floats in [0, 1] of the others."""
    if output_type == "pt":
        images = images.permute(0, 2, 3, 1).float().cpu().numpy()
    return [np.asarray(image)[..., :3] for image in images]  # without the alpha that some autoencoders make


def _colours(image: Any, dtype: np.dtype) -> np.ndarray:
    """An original as an array (H, W, 3) of this dtype, uint8 or floats in [0, 1]."""
    if isinstance(image, PIL.Image.Image):
        array = np.asarray(image.convert("RGB"))
    else:
        array = image if isinstance(image, np.ndarray) else image.permute(1, 2, 0).float().cpu().numpy()
    if dtype == np.uint8:
        return array if array.dtype == np.uint8 else np.rint(255 * array).astype(np.uint8)
    return array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.astype(dtype)


def _paste(
    original: Any, edited: np.ndarray, keep: torch.Tensor, box: tuple[int, int, int, int], feather: int
) -> np.ndarray:
    """The whole original, with the edited box in it wherever its weight is less than 1."""
    left, top, right, bottom = box
    whole = _colours(original, edited.dtype).copy()
    if edited.shape[:2] != (bottom - top, right - left):
        edited = _resize(edited, bottom - top, right - left)
    # what is kept beside the box counts for the seam too
    outer = max(left - feather, 0), max(top - feather, 0), right + feather, bottom + feather
    weights = original_weights(cut(keep[0], outer)[None], feather)
    weights = weights[top - outer[1] :, left - outer[0] :][: bottom - top, : right - left].numpy()
    whole[top:bottom, left:right] = lay_over(whole[top:bottom, left:right], edited, weights)
    return whole


def _resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    if picture.dtype == np.uint8:
        resized = PIL.Image.fromarray(picture).resize((width, height), PIL.Image.Resampling.LANCZOS)
        return np.asarray(resized)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
    resized = F.interpolate(tensor, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    return resized[0].permute(1, 2, 0).numpy()


def _as_output(results: list[np.ndarray], originals: list[Any], block_state) -> Any:
    """Arrays (H, W, 3) in the form asked for; PIL images with the alpha channel that their original has."""
    if block_state.output_type == "np":
        return np.stack(results)
    if block_state.output_type == "pt":
        images = block_state.images
        return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2).to(images.device, images.dtype)
    pictures = [PIL.Image.fromarray(result) for result in results]
    for picture, original in zip(pictures, originals, strict=True):
        if isinstance(original, PIL.Image.Image) and original.has_transparency_data:
            picture.putalpha(original.convert("RGBA").getchannel("A"))
    return pictures
