"""The model families that make videos, one class for each, under a change map over time. They are an entry module."""

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


# What the video's edit is made of; without a map, upstream's blocks run as they are.
VIDEO = {"triggers": ("prompt", "video"), "video": True, "latent_output": False}


class WanDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Wan 2.1: a video edited under a change map; without a map, upstream's text-to-video."""

    upstream = diffusers.WanBlocks
    family = FamilyTraits(**VIDEO)


class Wan22DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With Wan 2.2 and both of its transformers: a video edited under a change map; without, text-to-video."""

    upstream = diffusers.Wan22Blocks
    family = FamilyTraits(**VIDEO)


class LTXDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With LTX-Video: a video edited under a change map; without a map, all of upstream's workflows."""

    upstream = diffusers.LTXAutoBlocks
    family = FamilyTraits(**VIDEO, patch=1)


class LTX2DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With LTX-2: a video edited under a change map, with new sound; without a map, all of upstream's workflows."""

    upstream = diffusers.LTX2AutoBlocks
    family = FamilyTraits(**VIDEO, patch=1, sound=True)


class HunyuanVideo15DiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With HunyuanVideo 1.5: a video edited under a change map; without a map, all of upstream's workflows."""

    upstream = diffusers.HunyuanVideo15AutoBlocks
    family = FamilyTraits(**VIDEO, patch=1)
