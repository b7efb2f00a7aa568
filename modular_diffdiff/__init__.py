"""Differential diffusion as Modular Diffusers blocks: every pixel of an edit has its own strength."""

from .blocks.diffdiff_loop import DiffDiffRestoreStep
from .blocks.diffdiff_pixels import DiffDiffCropStep
from .blocks.diffdiff_sdxl import (
    SDXLDiffDiffCheckInputsStep,
    SDXLDiffDiffDenoiseLoop,
    SDXLDiffDiffInputStep,
    SDXLDiffDiffLoopBeforeDenoiser,
    SDXLDiffDiffPrepareLatentsStep,
    SDXLDiffDiffVaeEncoderStep,
)
from .presets import DIFFDIFF_BLOCKS, IMAGE2IMAGE_BLOCKS, TEXT2IMAGE_BLOCKS, SDXLDiffDiffBlocks


__all__ = [
    "DIFFDIFF_BLOCKS",
    "IMAGE2IMAGE_BLOCKS",
    "TEXT2IMAGE_BLOCKS",
    "DiffDiffCropStep",
    "DiffDiffRestoreStep",
    "SDXLDiffDiffBlocks",
    "SDXLDiffDiffCheckInputsStep",
    "SDXLDiffDiffDenoiseLoop",
    "SDXLDiffDiffInputStep",
    "SDXLDiffDiffLoopBeforeDenoiser",
    "SDXLDiffDiffPrepareLatentsStep",
    "SDXLDiffDiffVaeEncoderStep",
]
