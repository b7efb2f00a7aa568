"""A change map for any family: blocks that start from an image are opened, and ours put into them."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from diffusers.modular_pipelines import (
    AutoPipelineBlocks,
    ConditionalPipelineBlocks,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import (
    ComponentSpec,
    InputParam,
    OutputParam,
    combine_inputs,
    format_workflow,
)

from . import (
    diffdiff_docs,
    diffdiff_fit,
    diffdiff_layout,
    diffdiff_loop,
    diffdiff_pixels,
    diffdiff_prepare,
    diffdiff_saving,
)


# What upstream calls a workflow that starts from an image, in a workflow's name.
STARTS_FROM_IMAGE = re.compile("image2image|img2img|image_conditioned")


def add_diffdiff(
    blocks: ModularPipelineBlocks,
    triggers: tuple[str, ...] = ("prompt", "image"),
    original: str = "image_latents",
    references: bool = False,
    layout: diffdiff_prepare.Layout = diffdiff_layout.in_loop_form,
) -> DiffDiffAutoBlocks:
    """Blocks that obey a change map where one is given, and are what they were where none is.

    With a `diffdiff_map`, an opened copy of the blocks runs; without, an untouched one: whatever the blocks did before,
    they do to the last bit. `get_workflow("diffdiff")` of the result is the workflow with a map alone.

    Args:
        blocks: Any blocks that contain a workflow which encodes an image and denoises: automatic or sequential,
            upstream's or your own. They are copied, and stay as they are.
        triggers: The inputs that select this workflow.
        original: The state entry that holds the encoded image, a tensor (B, C, h, w) or (B, C, 1, h, w), or a list with
            one.
        references: Whether a list of images means several references of one picture, and not a batch.
        layout: How a grid lies in the denoising loop's latents, a function like `diffdiff_layout.in_loop_form`, which
            knows grids, grids with a frame axis, and tokens of square patches, row by row.

    Returns:
        Automatic blocks, with every workflow of the given ones, and with a map those that start from an image.

    Raises:
        TypeError: If `blocks` is no instance of upstream's blocks.
        ValueError: If no workflow is found that could be opened; the message says which argument would help.
    """
    return DiffDiffAutoBlocks(*open_blocks(blocks, triggers, original, references, layout))


def open_blocks(
    blocks: ModularPipelineBlocks,
    triggers: tuple[str, ...] = ("prompt", "image"),
    original: str = "image_latents",
    references: bool = False,
    layout: diffdiff_prepare.Layout = diffdiff_layout.in_loop_form,
) -> tuple[OpenedBlocks, BlocksWithoutMap, dict[str, dict[str, bool]]]:
    """What `add_diffdiff` makes its blocks of: those with a map, those without, and the workflows of both."""
    if not isinstance(blocks, ModularPipelineBlocks):
        raise TypeError(f"`blocks` is {blocks!r}; it takes an instance of modular blocks, as in `FluxAutoBlocks()`.")
    blocks = copy.deepcopy(blocks)  # nested blocks can be shared by all objects of a class
    if not isinstance(blocks, SequentialPipelineBlocks):
        workflows = blocks._workflow_map
        blocks = SequentialPipelineBlocks.from_blocks_dict({"blocks": blocks})
        blocks._workflow_map = workflows
    executed = blocks.get_execution_blocks(**dict.fromkeys(triggers, True))
    _check_workflow(executed, triggers, original)
    opened = _open(copy.deepcopy(blocks), executed, original, references, layout)
    without_map = BlocksWithoutMap.of(blocks.sub_blocks, blocks.model_name)
    return opened, without_map, _workflows(blocks, triggers)


def _check_workflow(executed: SequentialPipelineBlocks, triggers: tuple[str, ...], original: str) -> None:
    given, steps = ", ".join(f"`{name}`" for name in triggers), list(executed.sub_blocks.values())
    loops = [step for step in steps if isinstance(step, LoopSequentialPipelineBlocks)]
    if "diffdiff_map" in executed.input_names:
        raise ValueError("The blocks take a `diffdiff_map` already.")
    if len(loops) != 1:
        raise ValueError(
            f"With {given}, {len(loops)} denoising loops run, and a change map needs one: name the inputs that select "
            "the workflow which starts from an image, as in `triggers=('prompt', 'image')`."
        )
    before = steps[: steps.index(loops[0])]
    if not any(original in step.intermediate_output_names for step in before):
        made = sorted({name for step in before for name in step.intermediate_output_names if name.endswith("latents")})
        raise ValueError(
            f"With {given}, no block before the denoising loop makes `{original}`: name the state entry that holds the "
            f"encoded image with `original` (made are {', '.join(made) or 'no latents'}), or the inputs that select "
            "the workflow with `triggers`."
        )


def _workflows(blocks: SequentialPipelineBlocks, triggers: tuple[str, ...]) -> dict[str, dict[str, bool]]:
    """The blocks' own workflows, and with a map those of them that start from an image."""
    known = dict(blocks._workflow_map or {})
    opened = {"diffdiff": dict.fromkeys((*triggers, "diffdiff_map"), True)}
    for name, inputs in known.items():
        if isinstance(inputs, dict) and set(triggers) <= set(inputs) and "mask_image" not in inputs:
            renamed, replaced = STARTS_FROM_IMAGE.subn("diffdiff", name)
            opened[renamed if replaced else f"{name}_diffdiff"] = {**inputs, "diffdiff_map": True}
    return known | opened


def _open(
    blocks: SequentialPipelineBlocks,
    executed: SequentialPipelineBlocks,
    original: str,
    references: bool,
    layout: diffdiff_prepare.Layout,
) -> OpenedBlocks:
    """These blocks with ours in them: around, after the encoder, before and in every denoising loop."""
    paths = list(_paths_to_loops(blocks))
    for *_, loop in paths:
        _obey(loop)
    for sequence, name in _places_before_loops(paths):
        prepare = diffdiff_prepare.DiffDiffPrepareStep(original, layout)
        place = _place_to_prepare(sequence, name, original)
        _insert(sequence, place, prepare=prepare, skip_frozen=diffdiff_loop.DiffDiffSkipFrozenStep())
    _note_grid(blocks, original)

    taken = executed.input_names
    texts = tuple(name for name in taken if re.fullmatch(r"(negative_)?prompt(_\d)?", name))
    _insert(
        blocks,
        0,
        check_inputs=diffdiff_fit.DiffDiffCheckInputsStep(texts, references),
        crop_to_change=diffdiff_pixels.DiffDiffCropToChangeStep(),
        fit=diffdiff_fit.DiffDiffFitStep(texts, sized="strength" in taken, references=references),
    )
    if "images" in executed.intermediate_output_names:
        crop, overlay = diffdiff_pixels.DiffDiffCropStep(), diffdiff_pixels.DiffDiffOverlayStep()
        _insert(blocks, len(blocks.sub_blocks), crop=crop, overlay=overlay)
    return OpenedBlocks.of(blocks.sub_blocks, blocks.model_name)


def _insert(sequence: ModularPipelineBlocks, place: int, **named: ModularPipelineBlocks) -> None:
    for name, block in reversed(named.items()):
        if name in sequence.sub_blocks:
            raise ValueError(f"The blocks have one named `{name}` already, which is where ours goes; rename it.")
        sequence.sub_blocks.insert(name, block, place)


def _paths_to_loops(block: ModularPipelineBlocks) -> Iterator[list[ModularPipelineBlocks]]:
    """From a block down to each denoising loop in it."""
    if isinstance(block, LoopSequentialPipelineBlocks):
        yield [block]
        return
    for child in block.sub_blocks.values():
        for path in _paths_to_loops(child):
            yield [block, *path]


def _obey(loop: LoopSequentialPipelineBlocks) -> None:
    """Lets a denoising loop obey a change map: ours are its first and its last block, and it counts as our loops do."""
    if isinstance(loop, diffdiff_loop.DiffDiffLoop):
        return  # in two branches of the tree
    loop.__class__ = _obeying(type(loop))
    _insert(loop, 0, inject=diffdiff_loop.DiffDiffInjectStep())
    _insert(loop, len(loop.sub_blocks), restore=diffdiff_loop.DiffDiffRestoreStep())


@functools.cache
def _obeying(loop_class: type[LoopSequentialPipelineBlocks]) -> type[LoopSequentialPipelineBlocks]:
    """A denoising loop's class as ours, one and the same whenever it is asked for."""

    class Obeying(diffdiff_loop.DiffDiffLoop, loop_class):
        @property
        def description(self) -> str:
            try:
                upstreams = super().description.strip()
            except NotImplementedError:  # Stable Diffusion 3's has none, and could not be printed
                upstreams = "Denoising loop."
            return f"{upstreams}\nEvery latent element starts to change at the step that the change map gives it."

    Obeying.__name__ = Obeying.__qualname__ = f"DiffDiff{loop_class.__name__}"
    return Obeying


def _places_before_loops(paths: list[list[ModularPipelineBlocks]]) -> list[tuple[SequentialPipelineBlocks, str]]:
    """The nearest sequence around each loop, and the name of what holds the loop in it, each once."""
    places = {}
    for path in paths:
        around = max(i for i, block in enumerate(path) if isinstance(block, SequentialPipelineBlocks))
        sequence, holder = path[around], path[around + 1]
        name = next(name for name, block in sequence.sub_blocks.items() if block is holder)
        places[id(sequence), name] = sequence, name
    return list(places.values())


def _place_to_prepare(sequence: SequentialPipelineBlocks, holder: str, original: str) -> int:
    """Where latents and schedule are final: what comes later, as a ControlNet's window, counts the steps that run."""
    names = list(sequence.sub_blocks)
    before = names[: names.index(holder)]

    def concerned(block: ModularPipelineBlocks) -> bool:
        made = block.intermediate_output_names
        return bool(
            {"latents", original} & {*block.input_names, *made} or {"timesteps", "num_inference_steps"} & {*made}
        )

    places = [place for place, name in enumerate(before) if concerned(sequence.sub_blocks[name])]
    return places[-1] + 1 if places else len(before)


def _note_grid(block: ModularPipelineBlocks, original: str) -> None:
    """Puts `grid` right after whatever makes the original, in the deepest sequence that has the loop after it."""
    if isinstance(block, ConditionalPipelineBlocks):
        for branch in block.sub_blocks.values():
            _note_grid(branch, original)
    if not isinstance(block, SequentialPipelineBlocks):
        return
    for place, maker in enumerate(block.sub_blocks.values()):
        if original in maker.intermediate_output_names:
            if next(_paths_to_loops(maker), None):
                _note_grid(maker, original)
            else:
                _insert(block, place + 1, grid=diffdiff_prepare.DiffDiffGridStep(original))
            return


def _first_of_each_name(components: list[ComponentSpec]) -> list[ComponentSpec]:
    """The family's own spec of a component comes before that of our blocks."""
    return list({component.name: component for component in reversed(components)}.values())[::-1]


def _taken_from_outside(block: ModularPipelineBlocks) -> tuple[dict[str, bool], set[str]]:
    """What a block takes, by name whether it cannot do without it, and what it can make.

    The first block that takes an input decides: later ones find what earlier ones have filled in, and upstream's trees
    list that as required too.
    """
    if isinstance(block, ConditionalPipelineBlocks):
        branches = [_taken_from_outside(branch) for branch in block.sub_blocks.values()]
        taken = {
            name: block.default_block_name is not None and all(other.get(name) for other, _ in branches)
            for names, _ in branches
            for name in names
        }
        return taken, set.union(*(made for _, made in branches))
    if not isinstance(block, SequentialPipelineBlocks):
        needed, made = set(block.required_inputs), set(block.intermediate_output_names)
        if any(name.endswith("prompt_embeds") for name in made):
            needed.add("prompt")  # some of upstream's encoders declare it optional and fail without it
        return {name: name in needed for name in block.input_names}, made
    taken, made = {}, set()
    for child in block.sub_blocks.values():
        child_takes, child_makes = _taken_from_outside(child)
        for name, required in child_takes.items():
            if name not in made:
                # our check looks at the prompt before the encoder that needs it
                taken[name] = taken.get(name, required) or (required and name == "prompt")
        made |= child_makes
    return taken, made


class OpenedBlocks(diffdiff_docs.DocumentedSequentialBlocks):
    """A family's blocks, documented: those with a change map in them, and those without."""

    input_sentences = {**diffdiff_docs.SDXL_SENTENCES, **diffdiff_docs.FAMILY_SENTENCES}
    output_sentences = {**diffdiff_docs.SDXL_SENTENCES, **diffdiff_docs.OUTPUTS, **diffdiff_docs.FAMILY_SENTENCES}

    @classmethod
    def of(cls, sub_blocks: dict[str, ModularPipelineBlocks], family: str | None) -> OpenedBlocks:
        """Blocks whose pipeline is the family's own, whatever family their first block was written for."""
        blocks = cls.from_blocks_dict(sub_blocks)
        blocks.family = family
        return blocks

    @property
    def model_name(self) -> str | None:
        return getattr(self, "family", None) or super().model_name

    @property
    def required_inputs(self) -> list[str]:
        return [name for name, required in _taken_from_outside(self)[0].items() if required]

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return _first_of_each_name(super().expected_components)

    @property
    def outputs(self) -> list[OutputParam]:
        made = self.intermediate_outputs
        return [output for output in made if output.name == "images"] or made

    def get_execution_blocks(self, **kwargs: Any) -> OpenedBlocks:
        executed = SequentialPipelineBlocks.get_execution_blocks(self, **kwargs)
        return OpenedBlocks.of(executed.sub_blocks, self.model_name)


class BlocksWithoutMap(OpenedBlocks):
    """A family's blocks as they are."""

    @property
    def description(self) -> str:
        return "What runs without a change map: the blocks as they were given."


class DiffDiffAutoBlocks(diffdiff_saving.SavedWithCode, AutoPipelineBlocks):
    """Blocks that obey a change map where one is given; `add_diffdiff` makes them.

    Args:
        opened: The blocks that run with a `diffdiff_map`.
        without_map: Those that run without.
        workflows: Names and inputs of their workflows.
    """

    def __init__(self, opened: OpenedBlocks, without_map: BlocksWithoutMap, workflows: dict[str, dict[str, bool]]):
        self.block_classes = [opened, without_map]
        self.block_names = ["diffdiff", "without_map"]
        self.block_trigger_inputs = ["diffdiff_map", None]
        self._workflow_map = workflows
        super().__init__()

    @property
    def required_inputs(self) -> list[str]:
        return [name for name, required in _taken_from_outside(self)[0].items() if required]

    @property
    def description(self) -> str:
        return (
            "Differential diffusion where there is a `diffdiff_map`, and the blocks as they were given elsewhere.\n\n"
            f"{format_workflow(self._workflow_map)}"
        )

    @property
    def inputs(self) -> list[InputParam]:
        required = self.required_inputs  # once: upstream looks through the whole tree for every input
        params = combine_inputs(*((name, block.inputs) for name, block in self.sub_blocks.items()))
        return [replace(param, required=param.name in required) for param in params]

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return _first_of_each_name(super().expected_components)

    @property
    def available_workflows(self) -> list[str]:
        return list(self._workflow_map)

    def get_workflow(self, workflow_name: str) -> OpenedBlocks:
        if workflow_name not in self._workflow_map:
            raise ValueError(f"`workflow` is {workflow_name!r}; it takes one of {', '.join(self._workflow_map)}.")
        return self.get_execution_blocks(**self._workflow_map[workflow_name])


class FamilyDiffDiffAutoBlocks(DiffDiffAutoBlocks):
    """A model family of upstream's: what `add_diffdiff` makes of its automatic blocks, as a class."""

    # Upstream's automatic blocks, the arguments of `add_diffdiff`, and attributes of the `DiffDiffFitStep`.
    upstream: type[SequentialPipelineBlocks]
    arguments: dict[str, Any] = {}
    fit: dict[str, Any] = {}

    def __init__(self):
        opened, without_map, workflows = open_blocks(self.upstream(), **self.arguments)
        for name, value in self.fit.items():
            setattr(opened.sub_blocks["fit"], name, value)
        super().__init__(opened, without_map, workflows)

    @property
    def description(self) -> str:
        return (
            "Differential diffusion (Levin and Fried, arXiv 2306.00950): every pixel of an edit has its own strength, "
            "given by\na change map. White keeps the original, black lets everything change.\n"
            f"{inspect.getdoc(type(self))}\n\n{format_workflow(self._workflow_map)}"
        )
