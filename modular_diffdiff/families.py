"""The model families, a class each: upstream's automatic blocks under a change map. Entry module of their Hub repos."""

from .blocks.diffdiff_versions import NEEDED


# isort: split

from diffusers import (
    AnimaAutoBlocks,
    Flux2AutoBlocks,
    Flux2KleinAutoBlocks,
    Flux2KleinBaseAutoBlocks,
    Flux3AutoBlocks,
    Flux3DistilledAutoBlocks,
    FluxAutoBlocks,
    FluxKontextAutoBlocks,
    QwenImage21AutoBlocks,
    QwenImage21TurboAutoBlocks,
    QwenImageAutoBlocks,
    QwenImageEditAutoBlocks,
    QwenImageEditPlusAutoBlocks,
    StableDiffusion3AutoBlocks,
    ZImageAutoBlocks,
)

# The loader copies only the modules that are named here, so every one of `blocks/` is.
from .blocks.diffdiff_checks import check_count
from .blocks.diffdiff_docs import DocumentedSequentialBlocks
from .blocks.diffdiff_family import FamilyDiffDiffAutoBlocks, add_diffdiff
from .blocks.diffdiff_fit import DiffDiffFitStep
from .blocks.diffdiff_flux_kontext import FluxKontextDiffDiffSetResolutionStep
from .blocks.diffdiff_layout import in_loop_form
from .blocks.diffdiff_loop import DiffDiffRestoreStep
from .blocks.diffdiff_map import load_maps
from .blocks.diffdiff_mellon import WIDGETS
from .blocks.diffdiff_pixels import DiffDiffOverlayStep
from .blocks.diffdiff_prepare import DiffDiffPrepareStep
from .blocks.diffdiff_saving import save_code
from .blocks.diffdiff_sdxl import SDXLDiffDiffPrepareLatentsStep
from .blocks.diffdiff_sdxl_checks import SDXLDiffDiffCheckInputsStep
from .blocks.diffdiff_trajectory import noise_levels


# Image-to-image: a constant map of 1 - s is upstream's at strength s.


class SD3DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Stable Diffusion 3; without a map, upstream's text-to-image and image-to-image."""

    upstream = StableDiffusion3AutoBlocks


class FluxDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Flux; without a map, upstream's text-to-image and image-to-image."""

    upstream = FluxAutoBlocks


class QwenImageDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image and its ControlNet; without a map, all of upstream's workflows."""

    upstream = QwenImageAutoBlocks
    fit = {"no_negative": ""}


class ZImageDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Z-Image; without a map, upstream's text-to-image and image-to-image."""

    upstream = ZImageAutoBlocks


class AnimaDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Anima; without a map, upstream's text-to-image and image-to-image."""

    upstream = AnimaAutoBlocks


# Edit models: what the map keeps is the input image, the rest is what the model makes of it.


class FluxKontextDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Flux Kontext: a local edit, of up to a million pixels. The output has the size of the encoded image."""

    upstream = FluxKontextAutoBlocks
    fit = {"overrides": {"_auto_resize": False}, "largest_area": 1024 * 1024}

    def __init__(self):
        super().__init__()
        conditioned = self.sub_blocks["diffdiff"].sub_blocks["denoise"].sub_blocks["input"].sub_blocks
        conditioned["image_conditioned"].sub_blocks["set_resolution"] = FluxKontextDiffDiffSetResolutionStep()


class QwenImageEditDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image-Edit: a local edit."""

    upstream = QwenImageEditAutoBlocks
    fit = {"no_negative": " "}


class QwenImageEditPlusDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image-Edit-Plus and one reference: a local edit."""

    upstream = QwenImageEditPlusAutoBlocks
    arguments = {"references": True}


class QwenImage21DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image 2.1 and one reference: a local edit."""

    upstream = QwenImage21AutoBlocks
    arguments = {"references": True}


class QwenImage21TurboDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Qwen-Image 2.1 Turbo and one reference: a local edit."""

    upstream = QwenImage21TurboAutoBlocks
    arguments = {"references": True}


class Flux2DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Flux 2 and one reference: a local edit, of up to a million pixels."""

    upstream = Flux2AutoBlocks
    arguments = {"references": True}
    fit = {"least_side": 64, "largest_area": 1024 * 1024}


class Flux2KleinDiffDiffAutoBlocks(Flux2DiffDiffAutoBlocks):
    """With Flux 2 Klein and one reference: a local edit, of up to a million pixels."""

    upstream = Flux2KleinAutoBlocks


class Flux2KleinBaseDiffDiffAutoBlocks(Flux2DiffDiffAutoBlocks):
    """With Flux 2 Klein Base and one reference: a local edit, of up to a million pixels."""

    upstream = Flux2KleinBaseAutoBlocks


class Flux3DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Flux 3 and one reference: a local edit, of up to four million pixels."""

    upstream = Flux3AutoBlocks
    arguments = {"references": True, "original": "image_cond_latents"}
    fit = {"least_side": 64, "largest_area": 4 * 1024 * 1024}


class Flux3DistilledDiffDiffAutoBlocks(Flux3DiffDiffAutoBlocks):
    """With Flux 3 Distilled and one reference: a local edit, of up to four million pixels."""

    upstream = Flux3DistilledAutoBlocks
