"""The node that Mellon shows of the whole pipeline, in upstream's form."""

from __future__ import annotations

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.mellon_node_utils import MellonParam, MellonPipelineConfig


# What a workflow goes on with: pictures, and what a second run takes over.
OUTPUTS = {"images": "image", "latents": "latents", "image_latents": "latents", "noise": "latents", "doc": "text"}
# The call refuses it; a guider is connected instead.
HIDDEN = ("guidance_scale",)


def _socket(name: str, kind: str) -> MellonParam:
    """An input that nothing is typed into: it has a default of its own until something is connected."""
    return MellonParam.Input.custom_type(name, type=kind)


_slider, _dropdown = MellonParam.Input.slider, MellonParam.Input.dropdown

# Ranges are those that make sense, or those that the input takes; what is left out is a socket of the type "custom".
_WIDGETS = (
    MellonParam.Input.textbox("prompt"),
    MellonParam.Input.textbox("negative_prompt"),
    _socket("prompt_2", "string"),
    _socket("negative_prompt_2", "string"),
    MellonParam.Input.image("image"),
    MellonParam.Input.image("diffdiff_map"),
    MellonParam.Input.image("control_image"),
    MellonParam.Input.image("ip_adapter_image"),
    MellonParam.Input.checkbox("invert_diffdiff_map"),
    _slider("strength", default=1.0, min=0.0, max=1.0, step=0.01),
    _dropdown("diffdiff_schedule", options=["step", "timestep"]),
    _slider("diffdiff_softness", default=0.0, min=0.0, max=1.0, step=0.01),
    MellonParam.Input.checkbox("overlay"),
    _slider("overlay_grow", default=0, min=0, max=64),
    _slider("overlay_feather", default=0, min=0, max=64),
    MellonParam.Input.checkbox("match_colors"),
    MellonParam.Input.checkbox("batch_guidance"),
    _socket("padding_map_crop", "int"),
    _slider("num_inference_steps", default=50, min=1, max=100),
    _slider("num_images_per_prompt", default=1, min=1, max=8),
    _socket("height", "int"),
    _socket("width", "int"),
    _slider("eta", default=0.0, min=0.0, max=1.0, step=0.01),
    _slider("aesthetic_score", default=6.0, min=1.0, max=10.0, step=0.1),
    _slider("negative_aesthetic_score", default=2.0, min=1.0, max=10.0, step=0.1),
    _socket("clip_skip", "int"),
    _socket("denoising_start", "float"),
    _socket("denoising_end", "float"),
    _socket("latents", "latents"),
    _socket("noise", "latents"),
    _socket("image_latents", "latents"),
    _socket("control_mode", "int"),
    _slider("controlnet_conditioning_scale", default=1.0, min=0.0, max=2.0, step=0.01),
    _slider("control_guidance_start", default=0.0, min=0.0, max=1.0, step=0.01),
    _slider("control_guidance_end", default=1.0, min=0.0, max=1.0, step=0.01),
    MellonParam.Input.checkbox("guess_mode"),
    _dropdown("output_type", options=["pil", "np", "pt", "latent"]),
)
# By the name of the input, as upstream's `MellonPipelineConfig.from_custom_block` takes them.
WIDGETS = {widget.name: widget for widget in _WIDGETS}


def build_config(blocks: ModularPipelineBlocks, title: str, repo_id: str) -> MellonPipelineConfig:
    """Mellon's configuration of a family's blocks, published as `repo_id`: a node with what they take with a map."""
    blocks = blocks.sub_blocks["diffdiff"]
    config = MellonPipelineConfig.from_custom_block(
        blocks,
        node_label=f"Differential Diffusion {title}",
        input_types=WIDGETS,
        output_types=OUTPUTS,
    )
    node = config.node_specs["custom"]
    hidden = HIDDEN if "guider" in blocks.component_names else ()
    node["inputs"] = [param for param in node["inputs"] if param.name not in hidden]
    node["outputs"] = [param for param in node["outputs"] if param.name in OUTPUTS]
    # Mellon's own default suits the other families
    config.default_repo, config.default_dtype = repo_id, "float16" if blocks.model_name == "stable-diffusion-xl" else ""
    return config
