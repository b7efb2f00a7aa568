"""The pipelines: which blocks run, in which order. The entry module of the Hub repo."""

from .blocks.diffdiff_versions import NEEDED


# isort: split

from diffusers.modular_pipelines.modular_pipeline_utils import InsertableDict
from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise, decoders, denoise, encoders
from diffusers.modular_pipelines.stable_diffusion_xl import modular_blocks_stable_diffusion_xl as automatic

from .blocks.diffdiff_asked import check_count

# The loader copies only the modules that are named here: all that these pipelines need, directly or not.
from .blocks.diffdiff_block import DiffDiffBlock
from .blocks.diffdiff_checks import DiffDiffCheckInputsStep
from .blocks.diffdiff_docs import INPUTS
from .blocks.diffdiff_family import METHOD, DiffDiffSequentialBlocks, FamilyDiffDiffAutoBlocks
from .blocks.diffdiff_files import open_image
from .blocks.diffdiff_fill import DiffDiffFillStep, DiffDiffStartFilledStep, SDXLDiffDiffEncodeFilledStep
from .blocks.diffdiff_fit import DiffDiffAutoFitControlStep
from .blocks.diffdiff_frames import split_frames
from .blocks.diffdiff_guidance import only_combines
from .blocks.diffdiff_inpainting import SDXLDiffDiffEncodeKeptStep
from .blocks.diffdiff_kinds import Kind
from .blocks.diffdiff_layout import in_loop_form
from .blocks.diffdiff_loop import DiffDiffRestoreStep
from .blocks.diffdiff_make_map import DiffDiffMakeMapBesideInpaintingStep, DiffDiffMakeMapStep
from .blocks.diffdiff_map import load_maps
from .blocks.diffdiff_match import DiffDiffMatchColorsStep
from .blocks.diffdiff_model_sources import DiffDiffMapTextStep
from .blocks.diffdiff_overlay import DiffDiffCropStep, DiffDiffOverlayStep
from .blocks.diffdiff_picture_checks import image_geometry
from .blocks.diffdiff_pixels import lay_over
from .blocks.diffdiff_placement import DiffDiffCropToChangeStep, DiffDiffReadMapStep
from .blocks.diffdiff_prepare import DiffDiffSkipFrozenStep
from .blocks.diffdiff_preview import DiffDiffPreviewMapStep
from .blocks.diffdiff_refusals import BadInputError
from .blocks.diffdiff_regions import DiffDiffAutoRegionTextsStep, DiffDiffReadRegionsStep, DiffDiffRegionRowsStep
from .blocks.diffdiff_rows import change_rows
from .blocks.diffdiff_saving import save_code
from .blocks.diffdiff_sdxl import (
    TRAITS,
    SDXLDiffDiffAutoDenoiseStep,
    SDXLDiffDiffControlNetDenoiseLoop,
    SDXLDiffDiffDenoiseLoop,
    SDXLDiffDiffFitStep,
    SDXLDiffDiffInputStep,
    SDXLDiffDiffPrepareLatentsStep,
    SDXLDiffDiffRegionPromptsStep,
    SDXLDiffDiffSetTimestepsStep,
)
from .blocks.diffdiff_sdxl_checks import SDXLDiffDiffCheckInputsStep
from .blocks.diffdiff_shape import DiffDiffShapeMapStep
from .blocks.diffdiff_sources import DiffDiffMapSource
from .blocks.diffdiff_trajectory import noise_levels
from .blocks.diffdiff_video import DiffDiffReadVideoStep


TEXT2IMAGE_BLOCKS = InsertableDict(
    [
        ("text_encoder", encoders.StableDiffusionXLTextEncoderStep),
        ("input", before_denoise.StableDiffusionXLInputStep),
        ("set_timesteps", before_denoise.StableDiffusionXLSetTimestepsStep),
        ("prepare_latents", before_denoise.StableDiffusionXLPrepareLatentsStep),
        ("prepare_add_cond", before_denoise.StableDiffusionXLPrepareAdditionalConditioningStep),
        ("denoise", denoise.StableDiffusionXLDenoiseStep),
        ("decode", decoders.StableDiffusionXLDecodeStep),
    ]
)
IMAGE2IMAGE_BLOCKS = InsertableDict(
    [
        ("text_encoder", encoders.StableDiffusionXLTextEncoderStep),
        ("image_encoder", encoders.StableDiffusionXLVaeEncoderStep),
        ("input", before_denoise.StableDiffusionXLInputStep),
        ("set_timesteps", before_denoise.StableDiffusionXLImg2ImgSetTimestepsStep),
        ("prepare_latents", before_denoise.StableDiffusionXLImg2ImgPrepareLatentsStep),
        ("prepare_add_cond", before_denoise.StableDiffusionXLImg2ImgPrepareAdditionalConditioningStep),
        ("denoise", denoise.StableDiffusionXLDenoiseStep),
        ("decode", decoders.StableDiffusionXLDecodeStep),
    ]
)


def insert_before(blocks: InsertableDict, place: str, name: str, block: type) -> None:
    """Inserts a block right before the one named `place`."""
    blocks.insert(name, block, list(blocks).index(place))


# Differential diffusion is image-to-image with the whole schedule, a change map, and a loop that obeys it.
DIFFDIFF_BLOCKS = IMAGE2IMAGE_BLOCKS.copy()
DIFFDIFF_BLOCKS["set_timesteps"] = SDXLDiffDiffSetTimestepsStep
DIFFDIFF_BLOCKS["prepare_latents"] = SDXLDiffDiffPrepareLatentsStep
DIFFDIFF_BLOCKS["denoise"] = SDXLDiffDiffDenoiseLoop
# What belongs to a prompt stays with it, and the run starts where the map first releases something.
DIFFDIFF_BLOCKS["input"] = SDXLDiffDiffInputStep
insert_before(DIFFDIFF_BLOCKS, "prepare_add_cond", "start_filled", DiffDiffStartFilledStep)
insert_before(DIFFDIFF_BLOCKS, "prepare_add_cond", "skip_frozen", DiffDiffSkipFrozenStep)
insert_before(DIFFDIFF_BLOCKS, "prepare_add_cond", "region_rows", DiffDiffRegionRowsStep)
# In front, as for every family: bad input is refused, the map made, shaped and read, and pictures of any size and
# number brought along.
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "check_inputs", SDXLDiffDiffCheckInputsStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "make_map", DiffDiffMakeMapStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "shape_map", DiffDiffShapeMapStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "read_map", DiffDiffReadMapStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "find_regions", DiffDiffAutoRegionTextsStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "read_regions", DiffDiffReadRegionsStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "show_map", DiffDiffPreviewMapStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "crop_to_change", DiffDiffCropToChangeStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "fit", SDXLDiffDiffFitStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "region_prompts", SDXLDiffDiffRegionPromptsStep)
insert_before(DIFFDIFF_BLOCKS, "text_encoder", "fill", DiffDiffFillStep)
# Beside the original, what free parts start from and what an inpainting UNet is shown.
insert_before(DIFFDIFF_BLOCKS, "input", "encode_filled", SDXLDiffDiffEncodeFilledStep)
insert_before(DIFFDIFF_BLOCKS, "input", "encode_kept", SDXLDiffDiffEncodeKeptStep)
# Behind, as for every family: pictures come back at their size and in the original's colours, and pixels that are kept
# as they were.
DIFFDIFF_BLOCKS["crop"] = DiffDiffCropStep
DIFFDIFF_BLOCKS["match_colors"] = DiffDiffMatchColorsStep
DIFFDIFF_BLOCKS["overlay"] = DiffDiffOverlayStep

DIFFDIFF_CONTROLNET_BLOCKS = DIFFDIFF_BLOCKS.copy()
insert_before(DIFFDIFF_CONTROLNET_BLOCKS, "text_encoder", "fit_control", DiffDiffAutoFitControlStep)
insert_before(
    DIFFDIFF_CONTROLNET_BLOCKS, "denoise", "controlnet_input", automatic.StableDiffusionXLAutoControlNetInputStep
)
DIFFDIFF_CONTROLNET_BLOCKS["denoise"] = SDXLDiffDiffControlNetDenoiseLoop

# Whatever is given decides what runs: ControlNet with a control image, IP-Adapter with an image prompt.
DIFFDIFF_AUTO_BLOCKS = DIFFDIFF_CONTROLNET_BLOCKS.copy()
insert_before(DIFFDIFF_AUTO_BLOCKS, "text_encoder", "ip_adapter", automatic.StableDiffusionXLAutoIPAdapterStep)
DIFFDIFF_AUTO_BLOCKS["denoise"] = SDXLDiffDiffAutoDenoiseStep
DIFFDIFF_AUTO_BLOCKS["make_map"] = DiffDiffMakeMapBesideInpaintingStep


_EXAMPLE = """

Example:
    import torch
    from diffusers import ModularPipeline
    from diffusers.utils import load_image

    pipe = ModularPipeline.from_pretrained("modular-diffdiff/sdxl", trust_remote_code=True)
    pipe.load_components(workflow="diffdiff", dtype=torch.float16)
    pipe.to("cuda")
    image = pipe(
        prompt="a green pear",
        image=load_image("photo.png"),
        diffdiff_map="map.png",
        num_inference_steps=25,
        generator=torch.Generator().manual_seed(0),
        output="images",
    )[0]"""


class SDXLDiffDiffBlocks(DiffDiffSequentialBlocks):
    """Differential diffusion with SDXL: `DIFFDIFF_BLOCKS`. It always needs a map."""

    block_classes = list(DIFFDIFF_BLOCKS.values())
    block_names = list(DIFFDIFF_BLOCKS)
    _workflow_map = {"diffdiff": {"prompt": True, "image": True, "diffdiff_map": True}}
    description = METHOD + _EXAMPLE


class SDXLDiffDiffAutoBlocks(FamilyDiffDiffAutoBlocks):
    """With SDXL: with a `control_image` (and a `control_mode`, for a union) a ControlNet steers what changes, with an
    `ip_adapter_image` an IP-Adapter does. Without a map, all of upstream's workflows."""

    upstream = automatic.StableDiffusionXLAutoBlocks
    family = TRAITS

    def open(self, blocks: automatic.StableDiffusionXLAutoBlocks) -> DiffDiffSequentialBlocks:
        return DiffDiffSequentialBlocks.of(DIFFDIFF_AUTO_BLOCKS, blocks.model_name)

    @property
    def description(self) -> str:
        return super().description + _EXAMPLE
