"""The node that Mellon shows of the whole pipeline, in upstream's form."""

from __future__ import annotations

from diffusers.modular_pipelines.mellon_node_utils import MellonPipelineConfig

from .presets import SDXLDiffDiffAutoBlocks


# What a workflow goes on with: pictures, and what a second run takes over.
OUTPUTS = {"images": "image", "latents": "latents", "image_latents": "latents", "noise": "latents", "doc": "text"}
# The call refuses it; a guider is connected instead.
HIDDEN = ("guidance_scale",)


def build_config(repo_id: str) -> MellonPipelineConfig:
    """Mellon's configuration of the blocks published as `repo_id`: a node with their inputs as widgets and sockets."""
    config = MellonPipelineConfig.from_custom_block(
        SDXLDiffDiffAutoBlocks(), node_label="Differential Diffusion SDXL", output_types=OUTPUTS
    )
    node = config.node_specs["custom"]
    node["inputs"] = [param for param in node["inputs"] if param.name not in HIDDEN]
    node["outputs"] = [param for param in node["outputs"] if param.name in OUTPUTS]
    config.default_repo, config.default_dtype = repo_id, "float16"
    return config
