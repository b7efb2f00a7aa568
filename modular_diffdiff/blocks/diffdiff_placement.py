"""Front: where the picture lies in what the model sees, and cutting it to what changes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor

from . import diffdiff_asked, diffdiff_block, diffdiff_map, diffdiff_pixels, diffdiff_refusals


BadInputError = diffdiff_refusals.BadInputError


@dataclass(frozen=True)
class Placement:
    """Where the picture lies in what the model sees. Sizes are (height, width) in pixels.

    Attributes:
        originals: The pictures as given, all of one size, for `overlay`; empty where `image_latents` is given alone.
        keeps: The change maps as they count, white (1) keeps; a (1, 1, H, W) each, of any size, stretched to `whole`.
        regions: Where each prompt of a picture holds, a (1, prompts, H, W) for each picture or for all; empty without
            regions.
        whole: Size of the originals.
        box: The part of them that is edited, (left, top, right, bottom).
        size: The size that this part is edited at.
        canvas: `size` with the padding on the right and below, as the encoder gets it; `size` again behind `crop`.
        grid: Rows and columns of the latents that the encoder made of it, None before it has run.
    """

    originals: list[Any]
    keeps: list[torch.Tensor]
    whole: tuple[int, int]
    box: diffdiff_pixels.Box
    size: tuple[int, int]
    canvas: tuple[int, int]
    grid: tuple[int, int] | None = None
    regions: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, originals: list[Any], keeps: list[torch.Tensor], size: tuple[int, int]) -> Placement:
        """Pictures of this size, edited whole and at their size."""
        return cls(originals, keeps, size, (0, 0, size[1], size[0]), size, size)

    @property
    def is_cut(self) -> bool:
        """Whether only a part of the pictures is edited."""
        return self.box != (0, 0, self.whole[1], self.whole[0])

    def in_box(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Of maps of the pictures, (1, ..., H, W) each, the part that is edited."""
        if not self.is_cut:
            return maps
        return [diffdiff_pixels.cut(diffdiff_map.resize_map(one, *self.whole)[0], self.box)[None] for one in maps]

    def keeps_in_box(self) -> list[torch.Tensor]:
        """The change maps of the part that is edited, a (1, 1, H, W) each."""
        return self.in_box(self.keeps)

    def shown(self, height: int, width: int) -> tuple[int, int]:
        """Of a result of this size, what shows the image; a model that sizes what it gets sizes the padding too."""
        sides = zip(self.size, self.canvas, (height, width), strict=True)
        return tuple(round(image * result / canvas) for image, canvas, result in sides)


def size_of_picture(components, state, family: diffdiff_block.FamilyTraits) -> tuple[int, int]:
    """(height, width) in pixels of the image as given, or of a picture that is given as latents alone."""
    if state.get("image") is not None:
        return diffdiff_pixels.size_of(diffdiff_pixels.split_images(state.get("image"))[0])
    rows, columns = state.get(family.original).shape[-2:]
    cell = diffdiff_block.cell_of(components)
    return state.get("height") or rows * cell, state.get("width") or columns * cell


def check_count_of_maps(count: int, state) -> None:
    """Refuses maps that are neither one, nor one for each prompt, nor one for each output."""
    prompts = diffdiff_asked.count_prompts(state)
    if prompts is not None and count != prompts * (state.get("num_images_per_prompt") or 1):
        diffdiff_asked.check_count("diffdiff_map", count, prompts)


class DiffDiffReadMapStep(diffdiff_block.DiffDiffBlock):
    """Reads the change maps, inverts them and turns them down on request, and notes where the picture lies."""

    needs, gives = ("diffdiff_map",), ("image", "placement")
    takes = ("image", "invert_diffdiff_map", "strength", "allow_paths", "match_colors", "diffdiff_schedule")

    def run(self, components, block_state, state) -> None:
        keeps = diffdiff_map.read_maps(
            block_state.diffdiff_map, block_state.invert_diffdiff_map, block_state.strength, block_state.allow_paths
        )
        pictures = [] if block_state.image is None else diffdiff_pixels.split_images(block_state.image)
        pictures = diffdiff_pixels.in_unit_range(pictures)
        size = size_of_picture(components, state, self.family)
        check_count_of_maps(len(keeps), state)
        diffdiff_map.warn_of_stretching(keeps, *size)
        block_state.image = pictures or None
        block_state.placement = Placement.of(pictures, keeps, size)
        check_match(block_state, steps_of(state))


class DiffDiffCropToChangeStep(diffdiff_block.DiffDiffBlock):
    """With `padding_map_crop`, cuts the image to the box that changes and the padding around it.

    A small edit of a large picture then costs what a small picture costs; `overlay` puts the edited box back.
    """

    needs, gives = ("placement",), ("image", "placement")
    takes = ("image", "padding_map_crop", "match_colors", "diffdiff_schedule", "height", "width")

    def run(self, components, block_state, state) -> None:
        if block_state.padding_map_crop is not None:
            box = self.box(components, block_state, steps_of(state))
            left, top, right, bottom = box
            block_state.image = [diffdiff_pixels.cut(image, box) for image in block_state.image]
            block_state.placement = replace(
                block_state.placement, box=box, size=(bottom - top, right - left), canvas=(bottom - top, right - left)
            )
            check_match(block_state, steps_of(state))

    def box(self, components, block_state, steps: int | None) -> diffdiff_pixels.Box:
        """The box of all that the run will release in any of the maps."""
        whole, padding = block_state.placement.whole, block_state.padding_map_crop
        keeps = torch.cat([diffdiff_map.resize_map(keep, *whole) for keep in block_state.placement.keeps])
        changed = ~will_be_kept(keeps, block_state.diffdiff_schedule, steps)[:, 0].all(0)
        if not changed.any():
            warnings.warn("`diffdiff_map` changes nothing: the image comes back as it was.", stacklevel=2)
        elif block_state.height is not None and block_state.width is not None:
            # upstream's box has the ratio of the size that it is edited at
            mask = PIL.Image.fromarray(changed.numpy())
            return VaeImageProcessor.get_crop_region(mask, block_state.width, block_state.height, padding)
        return diffdiff_pixels.box_around(changed, padding, diffdiff_block.cell_of(components))


def will_be_kept(keep: torch.Tensor, schedule: str, steps: int | None) -> torch.Tensor:
    """Bool, of the shape of `keep`: what the run will fully keep, as far as it is known before there are timesteps."""
    if schedule == "step" and steps is not None:
        return diffdiff_map.kept_whole(keep, "step", torch.arange(steps))
    return keep >= 1 - diffdiff_map.KEEP_TOLERANCE  # no noise level is known yet


def check_match(block_state, steps: int | None) -> None:
    """Refuses `match_colors` where a map leaves nothing to match."""
    placement = block_state.placement
    for keep in placement.keeps_in_box() if block_state.match_colors else []:
        if not will_be_kept(diffdiff_map.resize_map(keep, *placement.size), block_state.diffdiff_schedule, steps).any():
            where = " in the box of `padding_map_crop`" if placement.is_cut else ""
            raise BadInputError(
                f"`match_colors` is True, and `diffdiff_map` keeps nothing fully{where}, its maximum is "
                f"{keep.max().item():.3g}: there is nothing to match the colours to."
            )


def steps_of(state) -> int | None:
    """The number of steps of the whole schedule, as far as it is known before the schedule is made."""
    given = next((state.get(name) for name in ("timesteps", "sigmas") if state.get(name) is not None), None)
    return state.get("num_inference_steps") if given is None else len(given)
