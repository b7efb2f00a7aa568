"""Blocks that make and shape change maps, and one that fans them out. Entry module of their Hub repos, one for each."""

from .blocks.diffdiff_versions import NEEDED


# isort: split

from .blocks.diffdiff_asked import check_count

# The loader copies only the modules that are named here: all that these blocks need, directly or not.
from .blocks.diffdiff_block import DiffDiffBlock
from .blocks.diffdiff_docs import INPUTS
from .blocks.diffdiff_fan import DiffDiffFanStep
from .blocks.diffdiff_files import open_image
from .blocks.diffdiff_kinds import Kind
from .blocks.diffdiff_layout import in_loop_form
from .blocks.diffdiff_loop import DiffDiffRestoreStep
from .blocks.diffdiff_map import load_maps
from .blocks.diffdiff_model_sources import (
    DiffDiffMapBoxesStep,
    DiffDiffMapDepthStep,
    DiffDiffMapPointsStep,
    DiffDiffMapTextStep,
)
from .blocks.diffdiff_pixels import lay_over
from .blocks.diffdiff_placement import Placement
from .blocks.diffdiff_refusals import BadInputError
from .blocks.diffdiff_shape import DiffDiffShapeMapStep
from .blocks.diffdiff_sources import (
    DiffDiffMapDifferenceStep,
    DiffDiffMapGradientStep,
    DiffDiffMapMaskStep,
    DiffDiffMapToMaskStep,
)
from .blocks.diffdiff_trajectory import noise_levels


# By the name that `publish --block` takes.
MAP_BLOCKS = {
    "map-text": DiffDiffMapTextStep,
    "map-points": DiffDiffMapPointsStep,
    "map-boxes": DiffDiffMapBoxesStep,
    "map-depth": DiffDiffMapDepthStep,
    "map-gradient": DiffDiffMapGradientStep,
    "map-difference": DiffDiffMapDifferenceStep,
    "map-mask": DiffDiffMapMaskStep,
    "map-to-mask": DiffDiffMapToMaskStep,
    "shape-map": DiffDiffShapeMapStep,
    "fan": DiffDiffFanStep,
}
