"""What blocks leave behind: every pipeline, block by block, against what its blocks declare."""

import copy

import pytest
import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopBeforeDenoiser

from modular_diffdiff import SDXLDiffDiffAutoBlocks

from .families import FAMILIES
from .helpers import adapter_weights, build, picture, seeded
from .test_families import LEVELS, loop_of, ours, run, small_edits, undecoded, workflow  # noqa: F401
from .test_families import build as build_family


OPTIONS = [{"overlay": True}, {"padding_map_crop": 4}, {"num_images_per_prompt": 2, "invert_diffdiff_map": True}]


def snapshot(state: PipelineState) -> dict:
    """Each entry of a state, with the version of a tensor, which counts what was written into it."""
    return {name: (value, getattr(value, "_version", None)) for name, value in state.values.items()}


def written_in_secret(pipe, given: dict) -> list[tuple[str, str]]:
    """(block, entry) of all that a block of ours has changed in the state and does not declare as an output."""
    state, secrets = PipelineState(), []
    for param in pipe.blocks.inputs:
        if param.name is not None:
            state.set(param.name, given.get(param.name, param.default), param.kwargs_type)
    for name, block in pipe.blocks.sub_blocks.items():
        before = snapshot(state)
        block(pipe, state)
        if not type(block).__module__.startswith("modular_diffdiff"):
            continue
        defaults = {param.name: param.default for param in block.inputs}
        for entry, (value, version) in snapshot(state).items():
            old, old_version = before.get(entry, (None, None))
            # upstream resolves a default where it is first read
            resolved = old is None and entry in defaults and value == defaults[entry]
            changed = value is not old or version != old_version
            if changed and not resolved and entry not in block.intermediate_output_names:
                secrets.append((name, entry))
    return secrets


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_written_in_secret(name, options):
    pipe = ours(name)
    given = {
        "prompt": "a green pear",
        "image": picture(37, 61),
        "diffdiff_map": LEVELS[:37, :61],
        "num_inference_steps": 4,
    }
    given |= {"num_inference_steps": 4, "generator": seeded(), "output_type": "pil"} | FAMILIES[name].inputs | options
    assert written_in_secret(pipe, given) == []


@pytest.mark.parametrize("options", OPTIONS[:2], ids=["overlay", "padding_map_crop"])
def test_with_a_controlnet_neither(options):
    pipe = build_family(workflow("qwen", "controlnet_diffdiff"), "qwen")
    given = {"prompt": ["a green pear", "a blue cup"], "image": picture(64, 64), "control_image": picture(64, 64, 5)}
    given |= {"diffdiff_map": LEVELS, "num_inference_steps": 4, "generator": seeded(), "output_type": "pil"}
    assert written_in_secret(pipe, given | options) == []


def test_nor_with_sdxls_union_and_ip_adapter(tiny, union, image_encoder):
    unet = copy.deepcopy(tiny["unet"])
    blocks = SDXLDiffDiffAutoBlocks().get_workflow("ip_adapter_controlnet_union_diffdiff")
    pipe = build(blocks, tiny | {"unet": unet, "controlnet": union, "image_encoder": image_encoder})
    pipe.load_ip_adapter(adapter_weights(unet, 0), subfolder="", weight_name="")
    given = {
        "prompt": "a green pear",
        "image": picture(37, 61),
        "diffdiff_map": LEVELS[:37, :61],
        "num_inference_steps": 4,
    }
    given |= {"num_inference_steps": 4, "ip_adapter_image": picture(seed=7)}
    given |= {"control_image": [picture(37, 61, 5)] * 2, "control_mode": [0, 1]}
    given |= {"generator": [seeded(0), seeded(1)], "num_images_per_prompt": 2, "overlay": True, "output_type": "pil"}
    assert written_in_secret(pipe, given) == []


# In the loop


class Shift(ModularPipelineBlocks):
    """Somebody's block behind ours, which changes all latents; the last in its loop, it passes them on."""

    inputs = [InputParam("latents", type_hint=torch.Tensor, required=True, description="Latents.")]
    intermediate_outputs = [OutputParam("latents", type_hint=torch.Tensor, description="Other latents.")]

    def __call__(self, components, block_state, i, t):
        block_state.latents = block_state.latents + 1
        return components, block_state


class Spy(ModularPipelineBlocks):
    """Notes how far what is frozen lies off the original's trajectory when the denoiser sees it."""

    def __init__(self):
        self.distances = []
        super().__init__()

    def __call__(self, components, block_state, i, t):
        alpha, sigma = block_state.level_alphas[i], block_state.level_sigmas[i]
        level = alpha * block_state.image_latents + sigma * block_state.noise
        frozen = (block_state.release_steps > i // components.scheduler.order).expand_as(level)
        self.distances.append((block_state.latents - level)[frozen].abs().max().item())
        return components, block_state

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_behind_restore_does_not_move_what_the_denoiser_sees_of_the_kept_part(name):
    pipe, spy = undecoded(ours(name, without=("skip_frozen",))), Spy()
    loop = loop_of(pipe._blocks)
    loop.sub_blocks["shift"] = Shift()
    loop.sub_blocks.insert("spy", spy, 1)
    run(pipe, name, diffdiff_map=LEVELS)
    assert len(spy.distances) == 4
    assert max(spy.distances) < 1e-5


@pytest.mark.parametrize("name", ["sdxl", "flux", "anima"])
def test_without_such_a_block_injection_changes_no_bit(name):
    """What `restore` has left is what `inject` writes."""
    pipe = undecoded(ours(name))
    plain = run(pipe, name, diffdiff_map=LEVELS).latents
    if name == "sdxl":  # its first block scales the latents too
        loop_of(pipe._blocks).sub_blocks["before_denoiser"] = StableDiffusionXLLoopBeforeDenoiser()
    else:
        loop_of(pipe._blocks).sub_blocks.pop("inject")
    assert torch.equal(run(pipe, name, diffdiff_map=LEVELS).latents, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loop_of_ours_is_a_familys_own_and_ends_with_latents(name):
    loop = loop_of(workflow(name))
    upstream = [FAMILIES[name].blocks().get_execution_blocks(prompt=True, image=True)]
    (theirs,) = [block for block in upstream[0].sub_blocks.values() if isinstance(block, LoopSequentialPipelineBlocks)]
    assert isinstance(loop, LoopSequentialPipelineBlocks)
    assert theirs.model_name == loop.model_name
    assert {block.name: block.type_hint for block in theirs.expected_components}.items() <= {
        block.name: block.type_hint for block in loop.expected_components
    }.items()
    assert [output.name for output in loop.outputs] == ["latents"]


@pytest.mark.parametrize("name", FAMILIES)
def test_components_are_upstreams(name):
    """Blocks for every family add no component of one."""
    upstream = FAMILIES[name].blocks().get_execution_blocks(prompt=True, image=True)
    expected = {(spec.name, spec.type_hint) for spec in upstream.expected_components}
    assert {(spec.name, spec.type_hint) for spec in workflow(name).expected_components} == expected
