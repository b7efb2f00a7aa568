"""The node that Mellon shows of the whole pipeline, in upstream's form."""

from __future__ import annotations

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.mellon_node_utils import MellonPipelineConfig


# What a workflow goes on with: pictures, and what a second run takes over.
OUTPUTS = {"images": "image", "latents": "latents", "image_latents": "latents", "noise": "latents", "doc": "text"}
# The call refuses it; a guider is connected instead.
HIDDEN = ("guidance_scale",)


def build_config(blocks: ModularPipelineBlocks, title: str, repo_id: str) -> MellonPipelineConfig:
    """Mellon's configuration of a family's blocks, published as `repo_id`: a node with their inputs on it."""
    config = MellonPipelineConfig.from_custom_block(
        blocks, node_label=f"Differential Diffusion {title}", output_types=OUTPUTS
    )
    node = config.node_specs["custom"]
    hidden = HIDDEN if "guider" in blocks.component_names else ()
    node["inputs"] = [param for param in node["inputs"] if param.name not in hidden]
    node["outputs"] = [param for param in node["outputs"] if param.name in OUTPUTS]
    # Mellon's own default suits the other families
    config.default_repo, config.default_dtype = repo_id, "float16" if blocks.model_name == "stable-diffusion-xl" else ""
    return config
