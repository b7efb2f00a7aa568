"""The embedded checkpoint: a small SDXL that draws still lifes, with the scenes and the script that made it."""

from pathlib import Path


# A folder in the standard SDXL form, for `from_pretrained` and `init_pipeline`; the latter passes over a `Path`.
CHECKPOINT = str(Path(__file__).parent / "checkpoint")
# Its ControlNets, image encoder and IP-Adapter, a subfolder each.
COMPANIONS = str(Path(__file__).parent / "companions")
# What makes change maps of its pictures: a CLIPSeg that knows its words, a SAM, and a DPT, each with its processor.
TEXT_SEGMENTER = str(Path(COMPANIONS) / "text_segmenter")
MASK_GENERATOR = str(Path(COMPANIONS) / "mask_generator")
DEPTH_ESTIMATOR = str(Path(COMPANIONS) / "depth_estimator")
# A control image for its ControlNets, so that nobody needs an edge detector: `controls.outline` of a blue bottle.
EDGES = str(Path(__file__).parent / "bottle_edges.png")
# What its inpainting UNet has of its own; `models.load_inpainting_unet` takes the rest from the checkpoint's.
INPAINTING = Path(COMPANIONS) / "inpainting" / "encoder.safetensors"
# A LoRA that makes it draw in four steps and without guidance, with `LCMScheduler`.
LCM_LORA = Path(COMPANIONS) / "lcm_lora" / "lcm-lora_still-life.safetensors"
IP_ADAPTER_NAME = "ip-adapter_still-life.safetensors"
# Of classifier-free guidance; more pushes its colours out of range.
GUIDANCE_SCALE = 2.0
# The same scenes by flow matching, in the standard Z-Image form.
FLOW_CHECKPOINT = str(Path(__file__).parent / "flow_checkpoint")
# As guiders count it, from 1 on; `ZImagePipeline` counts from 0 on and takes one less.
FLOW_GUIDANCE_SCALE = 2.0
