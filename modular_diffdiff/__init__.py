"""Differential diffusion as Modular Diffusers blocks: every pixel of an edit has its own strength."""

from importlib import import_module
from typing import Any

from .blocks import diffdiff_versions  # noqa: F401 - refuses a diffusers that is too old
from .catalog import FAMILIES


# Public names and where they live; imported when asked for, so that the command line answers before torch is loaded.
_MODULES = {
    "DIFFDIFF_AUTO_BLOCKS": "presets",
    "DIFFDIFF_BLOCKS": "presets",
    "DIFFDIFF_CONTROLNET_BLOCKS": "presets",
    "IMAGE2IMAGE_BLOCKS": "presets",
    "TEXT2IMAGE_BLOCKS": "presets",
    "SDXLDiffDiffBlocks": "presets",
    "add_diffdiff": "blocks.diffdiff_family",
    "without_encoders": "blocks.diffdiff_family",
    "StrengthFan": "fans",
    "draw_fan": "fans",
    "fan": "fans",
    "run_batch": "batch",
    "encode_once": "encodings",
    "read_video": "clips",
    "write_video": "clips",
    "BadInputError": "blocks.diffdiff_refusals",
    "DiffDiffAutoBlocks": "blocks.diffdiff_family",
    "DiffDiffSequentialBlocks": "blocks.diffdiff_family",
    "FamilyDiffDiffAutoBlocks": "blocks.diffdiff_family",
    "FamilyTraits": "blocks.diffdiff_block",
    "Placement": "blocks.diffdiff_placement",
    "DiffDiffCheckInputsStep": "blocks.diffdiff_checks",
    "DiffDiffCheckNoMapStep": "blocks.diffdiff_checks",
    "DiffDiffMakeMapStep": "blocks.diffdiff_make_map",
    "DiffDiffMakeMapBesideInpaintingStep": "blocks.diffdiff_make_map",
    "DiffDiffMapSource": "blocks.diffdiff_sources",
    "DiffDiffMapGradientStep": "blocks.diffdiff_sources",
    "DiffDiffMapDifferenceStep": "blocks.diffdiff_sources",
    "DiffDiffMapMaskStep": "blocks.diffdiff_sources",
    "DiffDiffMapToMaskStep": "blocks.diffdiff_sources",
    "DiffDiffMapTextStep": "blocks.diffdiff_model_sources",
    "DiffDiffMapPointsStep": "blocks.diffdiff_model_sources",
    "DiffDiffMapBoxesStep": "blocks.diffdiff_model_sources",
    "DiffDiffMapDepthStep": "blocks.diffdiff_model_sources",
    "DiffDiffShapeMapStep": "blocks.diffdiff_shape",
    "DiffDiffFanStep": "blocks.diffdiff_fan",
    "DiffDiffReadMapStep": "blocks.diffdiff_placement",
    "DiffDiffRegionTextsStep": "blocks.diffdiff_regions",
    "DiffDiffAutoRegionTextsStep": "blocks.diffdiff_regions",
    "DiffDiffReadRegionsStep": "blocks.diffdiff_regions",
    "DiffDiffRegionPromptsStep": "blocks.diffdiff_regions",
    "DiffDiffRegionRowsStep": "blocks.diffdiff_regions",
    "DiffDiffFillStep": "blocks.diffdiff_fill",
    "DiffDiffStartFilledStep": "blocks.diffdiff_fill",
    "DiffDiffPreviewMapStep": "blocks.diffdiff_preview",
    "DiffDiffCropToChangeStep": "blocks.diffdiff_placement",
    "DiffDiffFitStep": "blocks.diffdiff_fit",
    "DiffDiffFitControlStep": "blocks.diffdiff_fit",
    "DiffDiffAutoFitControlStep": "blocks.diffdiff_fit",
    "DiffDiffGridStep": "blocks.diffdiff_prepare",
    "DiffDiffPrepareStep": "blocks.diffdiff_prepare",
    "DiffDiffSkipFrozenStep": "blocks.diffdiff_prepare",
    "DiffDiffInjectStep": "blocks.diffdiff_loop",
    "DiffDiffRestoreStep": "blocks.diffdiff_loop",
    "DiffDiffCallbackStep": "blocks.diffdiff_loop",
    "DiffDiffCheckFiniteStep": "blocks.diffdiff_loop",
    "DiffDiffCropStep": "blocks.diffdiff_overlay",
    "DiffDiffMatchColorsStep": "blocks.diffdiff_match",
    "DiffDiffOverlayStep": "blocks.diffdiff_overlay",
    "DiffDiffCheckVideoInputsStep": "blocks.diffdiff_video",
    "DiffDiffReadVideoStep": "blocks.diffdiff_video",
    "DiffDiffFitVideoStep": "blocks.diffdiff_video",
    "DiffDiffEncodeVideoStep": "blocks.diffdiff_video",
    "DiffDiffPrepareVideoStep": "blocks.diffdiff_video",
    "DiffDiffCropVideoStep": "blocks.diffdiff_video",
    "DiffDiffOverlayVideoStep": "blocks.diffdiff_video",
    "SDXLDiffDiffAutoDenoiseStep": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffControlNetDenoiseLoop": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffDenoiseLoop": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffFitStep": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffInputStep": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffLoopBeforeDenoiser": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffControlNetLoopDenoiser": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffLoopDenoiser": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffPrepareLatentsStep": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffRegionPromptsStep": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffSetTimestepsStep": "blocks.diffdiff_sdxl",
    "SDXLDiffDiffEncodeFilledStep": "blocks.diffdiff_fill",
    "SDXLDiffDiffEncodeKeptStep": "blocks.diffdiff_inpainting",
    "SDXLDiffDiffInpaintingStep": "blocks.diffdiff_inpainting",
    "SDXLDiffDiffCheckInputsStep": "blocks.diffdiff_sdxl_checks",
}
_MODULES |= {family.blocks: family.module for family in FAMILIES.values()}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
