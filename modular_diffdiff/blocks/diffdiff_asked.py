"""What a run is asked for, and whether its values and its blocks go together."""

from __future__ import annotations

import functools

from diffusers.modular_pipelines import LoopSequentialPipelineBlocks

from . import diffdiff_block, diffdiff_docs, diffdiff_loop, diffdiff_refusals


# Made by our blocks for one another: the block of ours that makes it.
MAKERS = {"placement": "DiffDiffReadMapStep"} | dict.fromkeys(diffdiff_loop.INJECT_INPUTS, "DiffDiffPrepareStep")

BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


class Asked:
    """What a run is asked for.

    Args:
        check: The class of our first block, which looks at it.

    Attributes:
        given: The inputs that are not None, defaults included.
        executed: The blocks that run for them.
        ahead: Those of them behind the check.
        following: All blocks that can run behind it, of every branch.
        takes, needs, gives: The names of a block's inputs, of the required ones and of its outputs; each block is asked
            once.
    """

    def __init__(self, components, state, check: type):
        self.given = {name: value for name, value in state.values.items() if value is not None}
        blocks = components._blocks  # `components.blocks` is a copy, made anew
        self.executed = blocks.get_execution_blocks(**self.given)
        self.blocks = list(self.executed.sub_blocks.values())
        checks = [place for place, block in enumerate(self.blocks) if isinstance(block, check)]
        self.ahead = self.blocks[checks[0] + 1 :]
        self.following = _following(blocks, check)
        self.get = self.given.get
        inputs = functools.cache(lambda block: block.inputs)
        self.takes = functools.cache(lambda block: frozenset(param.name for param in inputs(block)) - {None})
        self.needs = functools.cache(lambda block: frozenset(param.name for param in inputs(block) if param.required))
        self.gives = functools.cache(lambda block: frozenset(block.intermediate_output_names))

    def makes(self, name: str) -> bool:
        """Whether a block makes this value from others; passing it on does not count."""
        return any(name in self.gives(block) - self.takes(block) for block in self.blocks)

    def reads(self, name: str) -> bool:
        """Whether a block works with this value; passing it on does not count."""
        return any(name in self.takes(block) - self.gives(block) for block in self.blocks)

    @property
    def lays_over(self) -> str | None:
        """The input that asks for the original's pixels."""
        return "overlay" if self.get("overlay") else "padding_map_crop" if "padding_map_crop" in self.given else None


def _following(block, check: type) -> list:
    """The blocks behind the check in the sequence that holds it, without those that hold others."""
    children = list(block.sub_blocks.values())
    places = [place for place, child in enumerate(children) if isinstance(child, check)]
    if places:
        return [leaf for child in children[places[0] + 1 :] for leaf in _leaves(child)]
    return next(filter(None, (_following(child, check) for child in children)), [])


def _leaves(block) -> list:
    """A block's blocks; a loop is one."""
    if isinstance(block, LoopSequentialPipelineBlocks) or not block.sub_blocks:
        return [block]
    return [leaf for child in block.sub_blocks.values() for leaf in _leaves(child)]


def count_prompts(state) -> int | None:
    """The number of prompts, or of their embeddings; None where the model takes none."""
    texts = state.get("prompt")
    if texts is not None:
        return 1 if isinstance(texts, str) else len(texts)
    names = sorted((name for name in state.values if name.endswith("prompt_embeds")), key=len)  # negative ones last
    return next((len(state.get(name)) for name in names if state.get(name) is not None), None)


def check_count(name: str, count: int, prompts: int) -> None:
    if count not in (1, prompts):
        one_each = f" or {prompts}, one for each prompt" if prompts > 1 else ", as there is one prompt"
        raise BadInputError(f"`{name}` holds {count}; it takes 1{one_each}.")


def check_kinds(asked: Asked) -> None:
    """Refuses single values of another kind or range than `diffdiff_docs.KINDS` says."""
    for name, value in asked.given.items():
        kind = diffdiff_docs.KINDS.get(name)
        if kind is not None and not kind.accepts(value):
            refuse(name, value, kind.takes)


def check_makers(asked: Asked, family: diffdiff_block.FamilyTraits) -> None:
    """Refuses values that a block would overwrite before any other reads them.

    What users are not meant to give is refused where a block can make it, whether or not that one runs this time.
    """
    given = asked.given.keys() - {family.area, *family.fixed, *family.followed}  # their defaults are not the user's
    internal = {name for name in given if not is_for_users(name)}
    for block in asked.following:
        check_unmade(asked, block, internal)
    unread = given - internal
    for block in asked.ahead:
        check_unmade(asked, block, unread)
        # ours pass on what they take and give
        passed = asked.gives(block) if isinstance(block, diffdiff_block.DiffDiffBlock) else set()
        unread -= asked.takes(block) - passed


def check_unmade(asked: Asked, block, names: set[str]) -> None:
    """Refuses what a block makes from others."""
    for name in names & asked.gives(block) - asked.takes(block):
        instead = f"leave it out, or take `{type(block).__name__}` out of the blocks (`without_encoders`)"
        raise BadInputError(f"`{name}` is given, but a block makes it, and would overwrite it: {instead}.")


def is_for_users(name: str) -> bool:
    """Whether this is an input, and not what blocks make for one another."""
    return name in diffdiff_docs.KINDS and diffdiff_docs.KINDS[name].takes != ""


def check_wiring(asked: Asked) -> None:
    """Refuses blocks of ours whose input is made by a block that was taken out."""
    made = set(asked.given)
    for block in asked.blocks:
        lost = [name for name in MAKERS if name in asked.needs(block) and name not in made]
        if lost:
            needs = f"`{type(block).__name__}` needs {', '.join(f'`{name}`' for name in lost)}"
            raise BadInputError(f"{needs}, and no block before it makes that: `{MAKERS[lost[0]]}` does.")
        made |= asked.gives(block)


def count_outputs(asked: Asked, prompts: int | None) -> int | None:
    """Number of outputs, and a check that the generators are as many; None where it cannot be told."""
    generator = asked.get("generator")
    per_prompt, made = asked.get("num_images_per_prompt"), "images"
    if per_prompt is None:
        per_prompt, made = asked.get("num_videos_per_prompt", 1), "videos"
    outputs = None if prompts is None else prompts * per_prompt
    if isinstance(generator, list) and outputs not in (None, len(generator)):
        one_each = f"one for each output ({prompts} prompts x {per_prompt} {made})"
        given = f"`generator` is a list of {len(generator)}"
        raise BadInputError(f"{given}; it takes one generator, or {outputs}: {one_each}.")
    return outputs
