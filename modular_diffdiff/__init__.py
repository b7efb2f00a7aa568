"""Differential diffusion as Modular Diffusers blocks: every pixel of an edit has its own strength."""

from .blocks.diffdiff_loop import DiffDiffRestoreStep
from .blocks.diffdiff_pixels import DiffDiffCropStep
from .blocks.diffdiff_sdxl import (
    SDXLDiffDiffAutoDenoiseStep,
    SDXLDiffDiffControlNetDenoiseLoop,
    SDXLDiffDiffDenoiseLoop,
    SDXLDiffDiffInputStep,
    SDXLDiffDiffLoopBeforeDenoiser,
    SDXLDiffDiffPrepareLatentsStep,
    SDXLDiffDiffVaeEncoderStep,
)
from .blocks.diffdiff_sdxl_checks import SDXLDiffDiffAutoCheckInputsStep, SDXLDiffDiffCheckInputsStep
from .presets import (
    DIFFDIFF_AUTO_BLOCKS,
    DIFFDIFF_BLOCKS,
    DIFFDIFF_CONTROLNET_BLOCKS,
    IMAGE2IMAGE_BLOCKS,
    TEXT2IMAGE_BLOCKS,
    SDXLDiffDiffAutoBlocks,
    SDXLDiffDiffBlocks,
)


__all__ = [
    "DIFFDIFF_AUTO_BLOCKS",
    "DIFFDIFF_BLOCKS",
    "DIFFDIFF_CONTROLNET_BLOCKS",
    "IMAGE2IMAGE_BLOCKS",
    "TEXT2IMAGE_BLOCKS",
    "DiffDiffCropStep",
    "DiffDiffRestoreStep",
    "SDXLDiffDiffAutoBlocks",
    "SDXLDiffDiffAutoCheckInputsStep",
    "SDXLDiffDiffAutoDenoiseStep",
    "SDXLDiffDiffBlocks",
    "SDXLDiffDiffCheckInputsStep",
    "SDXLDiffDiffControlNetDenoiseLoop",
    "SDXLDiffDiffDenoiseLoop",
    "SDXLDiffDiffInputStep",
    "SDXLDiffDiffLoopBeforeDenoiser",
    "SDXLDiffDiffPrepareLatentsStep",
    "SDXLDiffDiffVaeEncoderStep",
]
