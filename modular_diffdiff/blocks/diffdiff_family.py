"""A change map for any family: blocks that start from an image are opened, and ours put into them."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

from diffusers.modular_pipelines import (
    ConditionalPipelineBlocks,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import (
    InputParam,
    InsertableDict,
    combine_inputs,
    format_workflow,
)

from . import (
    diffdiff_block,
    diffdiff_checks,
    diffdiff_docs,
    diffdiff_fill,
    diffdiff_fit,
    diffdiff_guidance,
    diffdiff_loop,
    diffdiff_make_map,
    diffdiff_match,
    diffdiff_overlay,
    diffdiff_placement,
    diffdiff_prepare,
    diffdiff_preview,
    diffdiff_regions,
    diffdiff_saving,
    diffdiff_shape,
    diffdiff_sources,
    diffdiff_video,
)


METHOD = """\
Differential diffusion (Levin and Fried, arXiv 2306.00950): every pixel of an edit has its own strength, given by
a change map. White keeps the original, black lets everything change."""
# What upstream calls a workflow that starts from an image, in a workflow's name.
STARTS_FROM_IMAGE = re.compile("image2image|img2img|image_conditioned")
TEXT = re.compile(r"(negative_)?prompt(_\d)?")
# What predicts, or steers what does.
MODELS = {"transformer", "unet", "controlnet"}
# What blocks pass on and never make up: whoever needs one needs it from outside.
PASSED_ON = re.compile(rf"{TEXT.pattern}|.*prompt_embeds|image|image_latents|diffdiff_map")


def add_diffdiff(
    blocks: ModularPipelineBlocks, family: diffdiff_block.FamilyTraits | None = None
) -> DiffDiffAutoBlocks:
    """Blocks that obey a change map where one is given, and are what they were where none is.

    With a `diffdiff_map`, an opened copy of the blocks runs; without, an untouched one: whatever the blocks did before,
    they do to the last bit. `get_workflow("diffdiff")` of the result is the workflow with a map alone.

    Args:
        blocks: Any blocks that contain a workflow which encodes an image and denoises: automatic or sequential,
            upstream's or your own. They are copied, and stay as they are.
        family: What cannot be seen from outside; by default what suits upstream's image-to-image.

    Returns:
        Automatic blocks, with every workflow of the given ones, and with a map those that start from an image.

    Raises:
        TypeError: If `blocks` is not an instance of upstream's blocks.
        ValueError: If no workflow is found that could be opened; the message says which trait would help.
    """
    family = family or diffdiff_block.FamilyTraits()
    if not isinstance(blocks, ModularPipelineBlocks):
        raise TypeError(f"`blocks` is {blocks!r}; it takes an instance of modular blocks, as in `FluxAutoBlocks()`.")
    return DiffDiffAutoBlocks(open_blocks(blocks, family), blocks, family.triggers)


def open_blocks(blocks: ModularPipelineBlocks, family: diffdiff_block.FamilyTraits) -> DiffDiffSequentialBlocks:
    """A copy of these blocks with ours in them: around, after the encoder, before and in every denoising loop."""
    if family.video:
        return open_video_blocks(blocks, family)
    blocks = _copy_in_sequence(blocks)
    executed = blocks.get_execution_blocks(**dict.fromkeys(family.triggers, True))
    _check_workflow(executed, family)
    family = _complete(family, executed)
    _open_loops(blocks, family)
    _note_grid(blocks, family)
    if family.one_prompt:
        _ask_for_each_prompt(blocks, family)
    front = {
        "check_inputs": diffdiff_checks.DiffDiffCheckInputsStep(family),
        "make_map": diffdiff_make_map.step_for(blocks, family),
        "shape_map": diffdiff_shape.DiffDiffShapeMapStep(family),
        "read_map": diffdiff_placement.DiffDiffReadMapStep(family),
        "find_regions": diffdiff_regions.DiffDiffAutoRegionTextsStep(),
        "read_regions": diffdiff_regions.DiffDiffReadRegionsStep(family),
        "show_map": diffdiff_preview.DiffDiffPreviewMapStep(),
        "crop_to_change": diffdiff_placement.DiffDiffCropToChangeStep(),
        "fit": diffdiff_fit.DiffDiffFitStep(family),
        "region_prompts": diffdiff_regions.DiffDiffRegionPromptsStep(family),
    }
    if starts_from_image(family):
        front["fill"] = diffdiff_fill.DiffDiffFillStep(family)
    if "control_image" in blocks.input_names:
        front["fit_control"] = diffdiff_fit.DiffDiffAutoFitControlStep()
    _insert(blocks, 0, front)
    if "images" in executed.intermediate_output_names:
        back = {
            "crop": diffdiff_overlay.DiffDiffCropStep(),
            "match_colors": diffdiff_match.DiffDiffMatchColorsStep(),
            "overlay": diffdiff_overlay.DiffDiffOverlayStep(),
        }
        _insert(blocks, len(blocks.sub_blocks), back)
    return DiffDiffSequentialBlocks.of(blocks.sub_blocks, blocks.model_name)


def open_video_blocks(blocks: ModularPipelineBlocks, family: diffdiff_block.FamilyTraits) -> DiffDiffSequentialBlocks:
    """A copy of the blocks that make a video of a prompt, with ours in them: they then edit a video under a map."""
    blocks = _copy_in_sequence(blocks)
    # the number of frames is the video's, and nothing has to predict it
    executed = blocks.get_execution_blocks(**dict.fromkeys((*family.triggers, "num_frames"), True))
    _only_loop(executed, family)
    family = replace(_complete(family, executed), original="video_latents")
    (name,) = (name for name, step in executed.sub_blocks.items() if isinstance(step, LoopSequentialPipelineBlocks))
    executed.sub_blocks[name] = _opened(executed.sub_blocks[name], family)
    # sound begins with noise, at the first step
    skip = {} if family.sound else {"skip_frozen": diffdiff_prepare.DiffDiffSkipFrozenStep()}
    steps = {"prepare": diffdiff_video.DiffDiffPrepareVideoStep(family), **skip}
    _insert(executed, _place_to_prepare(executed, name, family.original), steps)
    front = {
        "check_inputs": diffdiff_video.DiffDiffCheckVideoInputsStep(family),
        "read_video": diffdiff_video.DiffDiffReadVideoStep(family),
        "fit": diffdiff_video.DiffDiffFitVideoStep(family),
        "encode_video": diffdiff_video.DiffDiffEncodeVideoStep(family),
    }
    _insert(executed, 0, front)
    if "videos" in executed.intermediate_output_names:
        back = {"crop": diffdiff_video.DiffDiffCropVideoStep(), "overlay": diffdiff_video.DiffDiffOverlayVideoStep()}
        _insert(executed, len(executed.sub_blocks), back)
    return DiffDiffSequentialBlocks.of(executed.sub_blocks, blocks.model_name)


def _copy_in_sequence(blocks: ModularPipelineBlocks) -> SequentialPipelineBlocks:
    """A copy of blocks, which can be shared by all objects of a class, as a sequence of at least one."""
    blocks = copy.deepcopy(blocks)
    if isinstance(blocks, SequentialPipelineBlocks):
        return blocks
    sequence = SequentialPipelineBlocks.from_blocks_dict({"blocks": blocks})
    sequence._workflow_map = blocks._workflow_map
    return sequence


def without_encoders(blocks: ModularPipelineBlocks, *names: str) -> ModularPipelineBlocks:
    """A copy of blocks that takes these values from the caller, in place of the blocks that make them.

    Args:
        blocks: Blocks with a change map in them, or others.
        names: State entries, e.g. "prompt_embeds" or "image_latents".

    Raises:
        ValueError: If no block makes one of them.
    """
    blocks = copy.deepcopy(blocks)
    for name in names:
        if not _pop_makers(blocks, name):
            raise ValueError(f"No block of {type(blocks).__name__} makes `{name}` before the denoising loop.")
    return blocks


def _pop_makers(blocks: ModularPipelineBlocks, name: str) -> bool:
    """Takes out what makes this value, whole steps at a time, up to the denoising loop; whether anything did."""
    if isinstance(blocks, ConditionalPipelineBlocks):
        found = [_pop_makers(branch, name) for branch in blocks.sub_blocks.values()]
        return any(found)
    found = False
    for key, block in list(blocks.sub_blocks.items()):
        if _has_loop(block):
            return found or _pop_makers(block, name)
        if key in blocks.sub_blocks and name in set(block.intermediate_output_names) - set(block.input_names):
            # in a workflow, steps lie flat, and the parts of one share its name
            step = {other for other in blocks.sub_blocks if other.rpartition(".")[0] == key.rpartition(".")[0] != ""}
            for part in {key} if any(_has_loop(blocks.sub_blocks[part]) for part in step) else {key} | step:
                blocks.sub_blocks.pop(part)
            found = True
    return found


def starts_from_image(family: diffdiff_block.FamilyTraits) -> bool:
    """Whether its model starts from the noised image; edit models start from noise, and look at the image."""
    return "strength" in family.fixed


def _check_workflow(executed: SequentialPipelineBlocks, family: diffdiff_block.FamilyTraits) -> None:
    given, steps = ", ".join(f"`{name}`" for name in family.triggers), list(executed.sub_blocks.values())
    before = steps[: steps.index(_only_loop(executed, family))]
    if not any(family.original in step.intermediate_output_names for step in before):
        made = sorted({name for step in before for name in step.intermediate_output_names if name.endswith("latents")})
        raise ValueError(
            f"With {given}, no block before the denoising loop makes `{family.original}`: name the state entry that "
            f"holds the encoded image with `original` (made are {', '.join(made) or 'no latents'}), or the inputs that "
            "select the workflow with `triggers`, both in `FamilyTraits`."
        )


def _only_loop(executed: SequentialPipelineBlocks, family: diffdiff_block.FamilyTraits) -> LoopSequentialPipelineBlocks:
    """The denoising loop of a workflow that a change map can be given to."""
    given = ", ".join(f"`{name}`" for name in family.triggers)
    loops = [step for step in executed.sub_blocks.values() if isinstance(step, LoopSequentialPipelineBlocks)]
    if "diffdiff_map" in executed.input_names:
        raise ValueError("The blocks take a `diffdiff_map` already.")
    if len(loops) != 1:
        raise ValueError(
            f"With {given}, {len(loops)} denoising loops run, and a change map needs one: name the inputs that select "
            "the workflow which starts from an image, as in `FamilyTraits(triggers=('prompt', 'image'))`."
        )
    return loops[0]


def _complete(family: diffdiff_block.FamilyTraits, executed: SequentialPipelineBlocks) -> diffdiff_block.FamilyTraits:
    """The traits with what can be seen from outside."""
    taken, steps = executed.input_names, executed.sub_blocks.values()
    encoders = [
        step for step in steps if "prompt" in step.input_names and "prompt" not in step.intermediate_output_names
    ]
    return replace(
        family,
        texts=tuple(name for name in taken if TEXT.fullmatch(name)),
        embeddings=tuple(name for step in encoders for name in step.intermediate_output_names if not family.references),
        sized=family.sized or "strength" in taken,
        # the whole schedule runs, and the map alone decides where on it
        fixed=family.fixed | ({"strength": 1.0} if "strength" in taken else {}),
    )


def _insert(sequence: ModularPipelineBlocks, place: int, named: dict[str, ModularPipelineBlocks]) -> None:
    for name, block in reversed(named.items()):
        if name in sequence.sub_blocks:
            raise ValueError(f"The blocks have one named `{name}` already, which is where ours goes; rename it.")
        sequence.sub_blocks.insert(name, block, place)


def _has_loop(block: ModularPipelineBlocks, through: type = ModularPipelineBlocks) -> bool:
    """Whether a block is a denoising loop, or has one within blocks of this kind."""
    return isinstance(block, LoopSequentialPipelineBlocks) or (
        isinstance(block, through) and any(_has_loop(child, through) for child in block.sub_blocks.values())
    )


def _open_loops(block: ModularPipelineBlocks, family: diffdiff_block.FamilyTraits) -> None:
    """Puts loops that obey a change map in the place of those within a block, and our steps before each."""
    for name, child in list(block.sub_blocks.items()):
        if isinstance(child, diffdiff_loop.DiffDiffLoop):
            continue  # reached by another branch
        if isinstance(child, LoopSequentialPipelineBlocks):
            block.sub_blocks[name] = _opened(child, family)
        else:
            _open_loops(child, family)
        # the nearest sequence around a loop
        if isinstance(block, SequentialPipelineBlocks) and _has_loop(child, ConditionalPipelineBlocks):
            filled = (
                {"start_filled": diffdiff_fill.DiffDiffStartFilledStep(family)} if starts_from_image(family) else {}
            )
            steps = {
                "prepare": diffdiff_prepare.DiffDiffPrepareStep(family),
                **filled,
                "skip_frozen": diffdiff_prepare.DiffDiffSkipFrozenStep(),
                "region_rows": diffdiff_regions.DiffDiffRegionRowsStep(family),
            }
            _insert(block, _place_to_prepare(block, name, family.original), steps)


def _opened(loop: LoopSequentialPipelineBlocks, family: diffdiff_block.FamilyTraits) -> LoopSequentialPipelineBlocks:
    """The same loop, a subclass's, with our blocks as its first and last."""
    kind = type(f"DiffDiff{type(loop).__name__}", (diffdiff_loop.DiffDiffLoop, type(loop)), {})
    opened = kind.from_blocks_dict(InsertableDict(loop.sub_blocks))
    asking = [name for name, step in loop.sub_blocks.items() if MODELS & set(step.component_names)]
    for name in asking:
        step = loop.sub_blocks[name]
        is_last = name == asking[-1]  # those before it prepare for the denoiser
        regional = diffdiff_regions.DiffDiffRegionalDenoiser if is_last else diffdiff_regions.DiffDiffRegional
        # LTX-2, which makes sound, guides in a way of its own
        in_one_call = is_last and "guider" in step.component_names and not family.sound
        mixins = [regional] * (not family.video) + [diffdiff_guidance.DiffDiffBatchGuidance] * in_one_call
        opened.sub_blocks[name] = _with_mixins(step, mixins, family)
    _insert(opened, 0, {"inject": diffdiff_loop.DiffDiffInjectStep()})
    last = {"restore": diffdiff_loop.DiffDiffRestoreStep(), "check_finite": diffdiff_loop.DiffDiffCheckFiniteStep()}
    _insert(opened, len(opened.sub_blocks), last)
    return opened


def _ask_for_each_prompt(block: ModularPipelineBlocks, family: diffdiff_block.FamilyTraits) -> None:
    """Lets blocks that take one prompt at a time, up to the loop, take several one after the other."""
    for name, child in list(block.sub_blocks.items()):
        if child.sub_blocks and not isinstance(child, LoopSequentialPipelineBlocks):
            _ask_for_each_prompt(child, family)
        elif "prompt" in child.input_names:
            block.sub_blocks[name] = _with_mixins(child, [diffdiff_regions.DiffDiffEachPrompt], family)


def _with_mixins(
    step: ModularPipelineBlocks, mixins: list[type], family: diffdiff_block.FamilyTraits
) -> ModularPipelineBlocks:
    """The same block, a subclass's, with these in front."""
    kind = type(f"DiffDiff{type(step).__name__}", (*mixins, type(step)), {"family": family})
    mixed = kind.__new__(kind)
    vars(mixed).update(vars(step))
    return mixed


def _place_to_prepare(sequence: SequentialPipelineBlocks, holder: str, original: str) -> int:
    """Where latents and schedule are final: what comes later, as a ControlNet's window, counts the steps that run."""
    place = end = list(sequence.sub_blocks).index(holder)
    for block in reversed(list(sequence.sub_blocks.values())[:end]):
        made = set(block.intermediate_output_names)
        if {"latents", original} & {*block.input_names, *made} or {"timesteps", "num_inference_steps"} & made:
            return place
        place -= 1
    return end


def _note_grid(block: ModularPipelineBlocks, family: diffdiff_block.FamilyTraits) -> None:
    """Puts `grid` right after whatever makes the original, in the deepest sequence that has the loop after it."""
    if isinstance(block, ConditionalPipelineBlocks):
        for branch in block.sub_blocks.values():
            _note_grid(branch, family)
    if not isinstance(block, SequentialPipelineBlocks):
        return
    for place, maker in enumerate(block.sub_blocks.values()):
        if family.original in maker.intermediate_output_names:
            if _has_loop(maker):
                _note_grid(maker, family)
            else:
                steps = {"grid": diffdiff_prepare.DiffDiffGridStep(family)}
                if starts_from_image(family):
                    given = dict.fromkeys(family.triggers, True)
                    encoder = maker.get_execution_blocks(**given) if maker.sub_blocks else maker
                    steps["encode_filled"] = diffdiff_fill.DiffDiffEncodeFilledStep(encoder, family)
                _insert(block, place + 1, steps)
            return


def required_of(block: ModularPipelineBlocks) -> tuple[dict[str, bool], set[str]]:
    """What a block takes, by name whether it cannot do without it, and what it can make.

    The first block that takes an input decides: later ones find what earlier ones have filled in, and upstream's trees
    list that as required too. What is passed on, and not made, is required if any block requires it.
    """
    if isinstance(block, ConditionalPipelineBlocks):
        branches = [required_of(branch) for branch in block.sub_blocks.values()]
        taken = {
            name: block.default_block_name is not None and all(other.get(name) for other, _ in branches)
            for names, _ in branches
            for name in names
        }
        return taken, set.union(*(made for _, made in branches))
    if not isinstance(block, SequentialPipelineBlocks):
        params, made = block.inputs, set(block.intermediate_output_names)
        names = [param.name for param in params if param.name is not None]
        needed = {param.name for param in params if param.required}
        # some of upstream's encoders declare these optional and fail without them
        if any(name.endswith("prompt_embeds") for name in made - set(names)):
            needed.add("prompt")
        if "image" not in made and made - set(names):
            needed.add("image")
        passed = {name for name in made & set(names) if PASSED_ON.fullmatch(name)}
        if isinstance(block, diffdiff_sources.DiffDiffMapSource):
            passed.discard("diffdiff_map")  # it joins one where there is one
        return {name: name in needed for name in names}, made - passed
    taken, made = {}, set()
    for child in block.sub_blocks.values():
        child_takes, child_makes = required_of(child)
        for name, required in child_takes.items():
            if name not in made:
                taken[name] = taken.get(name, required) or (required and PASSED_ON.fullmatch(name) is not None)
        made |= child_makes
    return taken, made


class DiffDiffSequentialBlocks(diffdiff_saving.SavedWithCode, diffdiff_docs.Documented, SequentialPipelineBlocks):
    """Blocks in a row, documented, that are saved with their code, and whose pipeline is their family's own."""

    description = "Differential diffusion: every pixel of an edit has its own strength, given by a change map."

    @classmethod
    def of(cls, sub_blocks: dict[str, ModularPipelineBlocks], family: str | None) -> DiffDiffSequentialBlocks:
        """Blocks of a family, whatever family their first block was written for."""
        blocks = cls.from_blocks_dict(sub_blocks)
        blocks.family = family
        return blocks

    @property
    def model_name(self) -> str | None:
        return getattr(self, "family", None) or super().model_name

    @property
    def inputs(self) -> list[InputParam]:
        required = self.required_inputs
        return [replace(param, required=param.name in required) for param in super().inputs]

    @property
    def required_inputs(self) -> list[str]:
        return [name for name, required in required_of(self)[0].items() if required]

    def get_execution_blocks(self, **kwargs: Any) -> DiffDiffSequentialBlocks:
        executed = super().get_execution_blocks(**kwargs)
        return DiffDiffSequentialBlocks.of(executed.sub_blocks, self.model_name)


class DiffDiffAutoBlocks(diffdiff_saving.SavedWithCode, ConditionalPipelineBlocks):
    """Blocks that follow a change map if one is given or asked for; `add_diffdiff` makes them.

    Args:
        opened: The blocks that run with a `diffdiff_map`, or with an input from which `make_map` makes one.
        blocks: Those that run without, any of upstream's.
        triggers: The inputs that select the workflow of `blocks` which starts from an image.
    """

    def __init__(self, opened: DiffDiffSequentialBlocks, blocks: ModularPipelineBlocks, triggers: tuple[str, ...]):
        blocks = _copy_in_sequence(blocks)
        known = {None, *blocks.input_names}
        map_inputs = tuple(param for param in opened.inputs if param.name not in known)
        check = {"check_no_map": diffdiff_checks.DiffDiffCheckNoMapStep(map_inputs)}
        without_map = DiffDiffSequentialBlocks.of(InsertableDict(check | blocks.sub_blocks), blocks.model_name)
        self.block_classes = [opened, without_map]
        self.block_names = ["diffdiff", "without_map"]
        self.block_trigger_inputs = _triggers(opened)
        self.default_block_name = "without_map"
        self._workflow_map = _workflows(blocks._workflow_map or {}, triggers)
        super().__init__()

    def select_block(self, **given: Any) -> str | None:
        return "diffdiff" if any(value is not None for value in given.values()) else None

    @property
    def inputs(self) -> list[InputParam]:
        required = self.required_inputs  # once: upstream looks through the whole tree for every input
        params = combine_inputs(*((name, block.inputs) for name, block in self.sub_blocks.items()))
        return [replace(param, required=param.name in required) for param in params]

    @property
    def description(self) -> str:
        return f"{METHOD}\n{diffdiff_docs.summary(self)}\n\n{format_workflow(self._workflow_map)}"

    required_inputs = DiffDiffSequentialBlocks.required_inputs
    available_workflows = SequentialPipelineBlocks.available_workflows
    get_workflow = SequentialPipelineBlocks.get_workflow


def _triggers(opened: DiffDiffSequentialBlocks) -> list[str]:
    """The change map, and the inputs that one is made from."""
    if "read_video" in opened.sub_blocks:
        return opened.sub_blocks["read_video"].triggers
    return ["diffdiff_map", *opened.sub_blocks["make_map"].sub_blocks]


def _workflows(known: dict[str, dict[str, bool]], triggers: tuple[str, ...]) -> dict[str, dict[str, bool]]:
    """With a map, those of the blocks' workflows that start from an image; and all of their own."""
    opened = {"diffdiff": dict.fromkeys((*triggers, "diffdiff_map"), True)}
    for name, inputs in known.items():
        if isinstance(inputs, dict) and set(triggers) <= set(inputs) and "mask_image" not in inputs:
            renamed, replaced = STARTS_FROM_IMAGE.subn("diffdiff", name)
            opened[renamed if replaced else f"{name}_diffdiff"] = {**inputs, "diffdiff_map": True}
    return opened | known


class FamilyDiffDiffAutoBlocks(DiffDiffAutoBlocks):
    """One of upstream's model families: its automatic blocks, opened by `add_diffdiff`, as a class.

    Attributes:
        upstream: Its automatic blocks.
        family: What cannot be seen of them from outside.
    """

    upstream: type[SequentialPipelineBlocks]
    family = diffdiff_block.FamilyTraits()

    def __init__(self):
        blocks = self.upstream()
        super().__init__(self.open(blocks), blocks, self.family.triggers)

    def open(self, blocks: SequentialPipelineBlocks) -> DiffDiffSequentialBlocks:
        """The blocks that run with a map."""
        return open_blocks(blocks, self.family)
