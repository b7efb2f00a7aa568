"""The model families, one class for each: upstream's automatic blocks under a change map. They are an entry module."""

from .blocks.diffdiff_versions import NEEDED


# isort: split

import diffusers

from .blocks.diffdiff_asked import check_count

# The loader copies only the modules that are named here: all that these pipelines need, directly or not.
from .blocks.diffdiff_block import DiffDiffBlock, FamilyTraits
from .blocks.diffdiff_checks import DiffDiffCheckInputsStep
from .blocks.diffdiff_docs import INPUTS
from .blocks.diffdiff_family import FamilyDiffDiffAutoBlocks
from .blocks.diffdiff_files import open_image
from .blocks.diffdiff_fill import DiffDiffFillStep
from .blocks.diffdiff_fit import DiffDiffFitStep
from .blocks.diffdiff_frames import split_frames
from .blocks.diffdiff_guidance import only_combines
from .blocks.diffdiff_kinds import Kind
from .blocks.diffdiff_layout import in_loop_form
from .blocks.diffdiff_loop import DiffDiffRestoreStep
from .blocks.diffdiff_make_map import DiffDiffMakeMapStep
from .blocks.diffdiff_map import load_maps
from .blocks.diffdiff_match import DiffDiffMatchColorsStep
from .blocks.diffdiff_model_sources import DiffDiffMapTextStep
from .blocks.diffdiff_overlay import DiffDiffOverlayStep
from .blocks.diffdiff_picture_checks import image_geometry
from .blocks.diffdiff_pixels import lay_over
from .blocks.diffdiff_placement import Placement
from .blocks.diffdiff_prepare import DiffDiffPrepareStep
from .blocks.diffdiff_preview import DiffDiffPreviewMapStep
from .blocks.diffdiff_refusals import BadInputError
from .blocks.diffdiff_regions import DiffDiffRegionRowsStep
from .blocks.diffdiff_rows import change_rows
from .blocks.diffdiff_saving import save_code
from .blocks.diffdiff_shape import DiffDiffShapeMapStep
from .blocks.diffdiff_sources import DiffDiffMapSource
from .blocks.diffdiff_trajectory import noise_levels
from .blocks.diffdiff_video import DiffDiffReadVideoStep


# Flux's positions of tokens.
IDS = ("txt_ids", "img_ids")


# Image-to-image: a constant map of 1 - s is upstream's at strength s.


class SD3DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Stable Diffusion 3; without a map, upstream's text-to-image and image-to-image."""

    upstream = diffusers.StableDiffusion3AutoBlocks


class FluxDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Flux; without a map, upstream's text-to-image and image-to-image."""

    upstream = diffusers.FluxAutoBlocks
    family = FamilyTraits(shared=IDS)


class QwenImageDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image and its ControlNet; without a map, all of upstream's workflows."""

    upstream = diffusers.QwenImageAutoBlocks
    family = FamilyTraits(no_negative="", latent_output=False)


class ZImageDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Z-Image; without a map, upstream's text-to-image and image-to-image."""

    upstream = diffusers.ZImageAutoBlocks
    family = FamilyTraits(lists=True)


class AnimaDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Anima; without a map, upstream's text-to-image and image-to-image."""

    upstream = diffusers.AnimaAutoBlocks
    family = FamilyTraits(latent_output=False, shared=("padding_mask",))


# Edit models: what the map keeps is the input image, the rest is what the model makes of it.


class FluxKontextDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Flux Kontext: a local edit, of up to a million pixels. The output has the size of the encoded image."""

    upstream = diffusers.FluxKontextAutoBlocks
    family = FamilyTraits(
        sized=True, area="max_area", largest_area=1024 * 1024, fixed={"_auto_resize": False}, shared=IDS
    )


class QwenImageEditDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image-Edit: a local edit."""

    upstream = diffusers.QwenImageEditAutoBlocks
    family = FamilyTraits(no_negative=" ", latent_output=False, pictures_only=True)


class QwenImageEditPlusDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image-Edit-Plus and one reference: a local edit."""

    upstream = diffusers.QwenImageEditPlusAutoBlocks
    family = FamilyTraits(references=True, one_prompt=True, latent_output=False, pictures_only=True)


class QwenImage21DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image 2.1 and one reference: a local edit."""

    upstream = diffusers.QwenImage21AutoBlocks
    family = FamilyTraits(references=True, latent_output=False, pictures_only=True)


class QwenImage21TurboDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image 2.1 Turbo and one reference: a local edit."""

    upstream = diffusers.QwenImage21TurboAutoBlocks
    family = FamilyTraits(references=True, latent_output=False, pictures_only=True)


class Flux2DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Flux 2 and one reference: a local edit, of up to a million pixels."""

    upstream = diffusers.Flux2AutoBlocks
    family = FamilyTraits(references=True, least_side=64, largest_area=1024 * 1024)


class Flux2KleinDiffDiffAutoBlocks(Flux2DiffDiffAutoBlocks):
    """With Flux 2 Klein and one reference: a local edit, of up to a million pixels."""

    upstream = diffusers.Flux2KleinAutoBlocks


class Flux2KleinBaseDiffDiffAutoBlocks(Flux2DiffDiffAutoBlocks):
    """With Flux 2 Klein Base and one reference: a local edit, of up to a million pixels."""

    upstream = diffusers.Flux2KleinBaseAutoBlocks


class Flux3DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Flux 3 and one reference: a local edit, of up to four million pixels."""

    upstream = diffusers.Flux3AutoBlocks
    family = FamilyTraits(
        original="image_cond_latents",
        references=True,
        one_prompt=True,
        pictures_only=True,
        shared=(*IDS, "image_cond_ids"),
        least_side=64,
        largest_area=4 * 1024 * 1024,
    )


class Flux3DistilledDiffDiffAutoBlocks(Flux3DiffDiffAutoBlocks):
    """With Flux 3 Distilled and one reference: a local edit, of up to four million pixels."""

    upstream = diffusers.Flux3DistilledAutoBlocks
