"""Regions: each part of a picture has a prompt of its own (MultiDiffusion, Bar-Tal et al., arXiv 2302.08113).

Every region is a row of the denoiser's batch, with the same latents, and the predictions are blended into one for each
picture: whatever samples from it sees one picture. The functions are pure. Notation: a picture has C prompts, its own
for what no region covers (left out where regions cover all pictures) and its regions'; `weights` say how much each of
them counts, and add up to 1 everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers.modular_pipelines import AutoPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from . import (
    diffdiff_block,
    diffdiff_docs,
    diffdiff_fit,
    diffdiff_guidance,
    diffdiff_map,
    diffdiff_model_sources,
    diffdiff_pixels,
    diffdiff_refusals,
    diffdiff_rows,
    diffdiff_trajectory,
)


BadInputError = diffdiff_refusals.BadInputError
# What a picture has once in the loop, however many prompts it has.
OF_PICTURES = ("latents", "image_latents", "noise", "release_steps", "keep")

# What is in the loop for our blocks alone: no model is given a row of it.
NOT_ASKED = ("noise", "release_steps", "keep", "level_alphas", "level_sigmas", "region_weights", "region_begins")


def weigh(regions: torch.Tensor) -> torch.Tensor:
    """(B, K + 1, H, W): what is left of each place for the picture's own prompt, and the weights of K regions.

    Args:
        regions: (B, K, H, W) in [0, 1]. Where they add up to more than 1, they share the place.
    """
    rest = (1 - regions.sum(1, keepdim=True)).clamp(min=0)
    weights = torch.cat([rest, regions], 1)
    return weights / weights.sum(1, keepdim=True)


def strength_of(weights: torch.Tensor, strengths: list[float]) -> torch.Tensor:
    """(B, 1, H, W): the strength of each place, of weights (B, K + 1, H, W) and the strengths of K regions."""
    factors = torch.tensor([1.0, *strengths]).view(1, -1, 1, 1)
    return (weights * factors).sum(1, keepdim=True)


def blend(predictions: torch.Tensor, rows: list[int], weights: torch.Tensor) -> torch.Tensor:
    """One prediction for each picture: the weighted mean of those for its prompts.

    Args:
        predictions: (A, ...), those of the prompts that were asked for.
        rows: Which these are, of pictures x C; at least one for each picture.
        weights: (pictures, C, ...), in what broadcasts to predictions. Those of prompts that were not asked for do not
            count; where no others are, all that were asked for count alike.
    """
    pictures, count = weights.shape[:2]
    asked = torch.zeros(pictures * count, dtype=torch.bool)
    asked[rows] = True
    asked = asked.to(weights.device).view(pictures, count, *[1] * (weights.ndim - 2))
    shares = torch.where(asked, weights, 0)
    total = shares.sum(1, keepdim=True)
    shares = torch.where(total > 0, shares / total, asked / asked.sum(1, keepdim=True)).flatten(0, 1)[rows]
    blended = predictions.new_zeros(pictures, *predictions.shape[1:], dtype=torch.float32)
    of_picture = torch.tensor([row // count for row in rows], device=blended.device)
    return blended.index_add_(0, of_picture, shares * predictions.float()).to(predictions.dtype)


def by_picture(values: list[Any], kind: type | tuple[type, ...] = list) -> list[list[Any]]:
    """What is given for the regions of one picture, or in lists of them for several, as lists."""
    return values if isinstance(values[0], kind) else [values]


class DiffDiffRegionTextsStep(diffdiff_model_sources.DiffDiffModelMapSource):
    """Finds regions by words: the segmenter sees where each text of `region_texts` is."""

    needs, takes, gives = ("region_texts",), ("image", "map_text_threshold"), ("image", "region_maps")
    models = diffdiff_model_sources.DiffDiffMapTextStep.models

    def run(self, components, block_state, state) -> None:
        self.check_models(components)
        pictures = self.pictures(block_state)
        texts = by_picture(block_state.region_texts)
        if len(texts) not in (1, len(pictures)):
            raise BadInputError(f"`region_texts` is for {len(texts)} images, and `image` holds {len(pictures)}.")
        texts = texts * (len(pictures) // len(texts))
        block_state.region_maps = [
            self.find(components, block_state, picture, sought) for picture, sought in zip(pictures, texts, strict=True)
        ]

    def find(self, components, block_state, picture: Any, texts: list[str]) -> list[torch.Tensor]:
        """Where each text is in a picture, a (1, 1, H, W) each."""
        size = diffdiff_pixels.size_of(picture)
        found = diffdiff_model_sources.find_words(
            components,
            [diffdiff_model_sources.as_pil(picture)] * len(texts),
            texts,
            size,
            block_state.map_text_threshold,
            "region_texts",
        )
        for text, where in zip(texts, found, strict=True):
            if where.amax() < diffdiff_model_sources.FOUND:
                raise BadInputError(f"`region_texts` finds nothing of {text!r}: that region would be empty.")
        return list(found.split(1))


class DiffDiffReadRegionsStep(diffdiff_block.DiffDiffBlock):
    """With `region_prompts`, reads where each of them holds, and turns the change map down to `region_strengths`."""

    needs, takes = ("placement",), ("region_prompts", "region_maps", "region_strengths", "allow_paths")
    gives = ("placement",)

    def run(self, components, block_state, state) -> None:
        if block_state.region_prompts is None:
            return
        placement = block_state.placement
        size, listed = placement.whole, isinstance(block_state.region_maps, (list, tuple))
        given = by_picture(block_state.region_maps, (list, tuple)) if listed else [block_state.region_maps]
        regions = [self.read(block_state, maps, size) for maps in given]
        counts = {len(prompts) for prompts in by_picture(block_state.region_prompts)}
        check_pairs(counts | {maps.shape[1] for maps in regions}, "region_maps")
        if len(regions) not in (1, len(placement.originals), len(placement.keeps)):
            raise BadInputError(
                f"`region_maps` is for {len(regions)} images, and there are {len(placement.originals)}."
            )
        weights = [weigh(maps) for maps in regions]
        if block_state.region_strengths is not None:
            strengths = [strength_of(one, block_state.region_strengths) for one in weights]
            count = max(len(placement.keeps), len(strengths))
            pairs = zip(
                *(diffdiff_trajectory.for_each_output(each, count) for each in (placement.keeps, strengths)),
                strict=True,
            )
            keeps = [1 - strength * (1 - diffdiff_map.resize_map(keep, *size)) for keep, strength in pairs]
            placement = replace(placement, keeps=keeps)
        if all(one[:, 0].amax() == 0 for one in weights):
            weights = [one[:, 1:] for one in weights]
        block_state.placement = replace(placement, regions=weights)

    def read(self, block_state, maps: Any, size: tuple[int, int]) -> torch.Tensor:
        """(1, K, height, width): the maps of one picture."""
        regions = diffdiff_map.load_maps(maps, block_state.allow_paths, "region_maps")
        for place, region in enumerate(regions):
            if region.amax() == 0:
                raise BadInputError(f"`region_maps[{place}]` is black everywhere; white is where its prompt holds.")
        diffdiff_map.warn_of_stretching(regions, *size, "region_maps")
        return torch.cat([diffdiff_map.resize_map(region, *size) for region in regions], 1)


def check_pairs(counts: set[int], name: str) -> None:
    """Refuses numbers of prompts and of what goes with them that differ."""
    if len(counts) > 1:
        raise BadInputError(f"`region_prompts` and `{name}` go in pairs, and their numbers differ: {sorted(counts)}.")


class DiffDiffRegionPromptsStep(diffdiff_fit.DiffDiffFitStep):
    """With `region_prompts`, gives the text encoders all prompts, and a picture's rows its own image and noise."""

    needs = ("placement",)

    @property
    def takes(self) -> tuple[str, ...]:
        return (
            "region_prompts",
            "image",
            *self.of_prompts,
            "num_images_per_prompt",
            "generator",
            *diffdiff_trajectory.NOISE,
        )

    @property
    def gives(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.takes[1:]))

    def run(self, components, block_state, state) -> None:
        if block_state.region_prompts is None:
            return
        if not block_state.placement.regions:
            raise BadInputError("`region_prompts` is given, but `read_regions` was popped from the blocks.")
        prompts = block_state.prompt if isinstance(block_state.prompt, list) else [block_state.prompt]
        pictures = len(prompts) * block_state.num_images_per_prompt
        count = block_state.placement.regions[0].shape[1]
        rows = pictures * count
        regions = diffdiff_trajectory.for_each_output(by_picture(block_state.region_prompts), pictures)
        for name in self.of_prompts:
            value = getattr(block_state, name)
            if value is None and name == "negative_prompt" and rows > 1:
                value = self.family.no_negative
            if value is None:
                continue
            if name in self.family.texts and not name.startswith("negative"):
                own = diffdiff_trajectory.for_each_output(value, pictures)
                together = [[text, *others][-count:] for text, others in zip(own, regions, strict=True)]
                texts = [text for texts in together for text in texts]
                setattr(block_state, name, texts if rows > 1 else texts[0])
            elif isinstance(value, (str, list)) or len(value) > 1:
                setattr(block_state, name, diffdiff_trajectory.for_each_output(value, rows))
        block_state.num_images_per_prompt = 1
        if count == 1:
            return
        self.share_noise(block_state, pictures, count)
        own_noise = isinstance(block_state.generator, list) or not self.family.encodes_once
        if block_state.image is not None and own_noise and not self.family.references:
            images = diffdiff_pixels.split_images(block_state.image)
            block_state.image = diffdiff_fit.as_batch(diffdiff_trajectory.for_each_output(images, rows))

    def share_noise(self, block_state, pictures: int, count: int) -> None:
        """The same noise for all rows of a picture."""
        generators = block_state.generator
        if not isinstance(generators, list):
            generators = diffdiff_trajectory.same_noise(generators, 1)
            if pictures > 1:
                seeds = torch.randint(2**62, (pictures,), generator=generators[0], device=generators[0].device)
                generators = [torch.Generator(seed.device).manual_seed(seed.item()) for seed in seeds]
        block_state.generator = [copy for one in generators for copy in diffdiff_trajectory.same_noise(one, count)]
        for name in diffdiff_trajectory.NOISE:
            if (value := getattr(block_state, name)) is not None:
                setattr(block_state, name, diffdiff_trajectory.for_each_output(value, pictures * count))


class DiffDiffEachPrompt:
    """Mixin of a text encoder's block that takes one prompt at a time: it is asked for each of a list of them."""

    @torch.no_grad()
    def __call__(self, components, state):
        prompts, negative = state.get("prompt"), state.get("negative_prompt")
        if not isinstance(prompts, list):
            return super().__call__(components, state)
        negatives = negative if isinstance(negative, list) else [negative] * len(prompts)
        answers = []
        for prompt, own in zip(prompts, negatives, strict=True):
            state.set("prompt", prompt)
            state.set("negative_prompt", own)
            super().__call__(components, state)
            answers.append({name: state.get(name) for name in self.intermediate_output_names})
        state.set("prompt", prompts)
        state.set("negative_prompt", negative)
        for name in answers[0]:
            if f"{name}_mask" in answers[0] and answers[0][name] is not None:
                diffdiff_guidance.pad(answers, name, f"{name}_mask")
        for name in answers[0]:
            state.set(name, together(name, [answer[name] for answer in answers]))
        return components, state


def together(name: str, values: list[Any]) -> Any:
    """What several prompts have become, as one batch."""
    if not isinstance(values[0], torch.Tensor):
        return None if values[0] is None else values
    if len({value.shape[1:] for value in values}) > 1:
        tokens = ", ".join(str(value.shape[1]) for value in values)
        raise BadInputError(
            f"`region_prompts` and `prompt` make `{name}` of {tokens} tokens, and this model takes no mask: give it "
            "prompts of about one length."
        )
    return torch.cat(values)


class DiffDiffRegionRowsStep(diffdiff_block.DiffDiffBlock):
    """Right before a loop: with regions, leaves each picture one row of latents, and says what counts where."""

    needs, takes = OF_PICTURES, ("generator",)
    gives = (*OF_PICTURES, "generator", "region_weights", "region_begins")

    def run(self, components, block_state, state) -> None:
        block_state.region_weights = block_state.region_begins = None
        placement, rows = state.get("placement"), len(block_state.latents)
        if placement is None or not placement.regions:
            return
        grid = placement.grid or tuple(block_state.image_latents.shape[-2:])
        regions = diffdiff_map.keep_on_grid(placement.in_box(placement.regions), placement.size, grid, placement.canvas)
        count = regions.shape[1]
        for name in OF_PICTURES:
            value = getattr(block_state, name)
            setattr(block_state, name, value[::count] if len(value) == rows else value)
        if isinstance(block_state.generator, list):
            block_state.generator = block_state.generator[::count]
        latents = block_state.latents
        regions = diffdiff_trajectory.for_each_output(regions, len(latents)).to(latents.device)
        on_latents = self.family.layout(regions.flatten(0, 1)[:, None], latents)
        weights = on_latents.unflatten(0, (len(latents), count))
        steps = block_state.release_steps[:, None].expand(len(weights), *[-1] * block_state.release_steps.ndim)
        begins = torch.where(weights > 0, steps, torch.iinfo(steps.dtype).max).flatten(2).amin(2)
        block_state.region_weights, block_state.region_begins = weights, begins.flatten().tolist()


def rows_of_step(begins: list[int], step: int, count: int) -> list[int]:
    """The rows that a step has to ask for: those that release something, and at least the first of each picture."""
    rows = []
    for first in range(0, len(begins), count):
        begun = [row for row in range(first, first + count) if begins[row] <= step]
        rows += begun or [first]
    return rows


class DiffDiffRegional(diffdiff_docs.Documented):
    """Mixin of a loop's block that asks a model: with regions, it sees a row for each of them."""

    family = diffdiff_block.FamilyTraits()

    @property
    def inputs(self) -> list[InputParam]:
        names = ("region_weights", "region_begins")
        return [*super().inputs, *(diffdiff_docs.input_param(name) for name in names)]

    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        weights = block_state.region_weights
        if weights is None or weights.shape[1] == 1:
            return super().__call__(components, block_state, i=i, t=t)
        rows = self.rows(components, block_state, i)
        before = self.seen(block_state, rows)
        _, seen = super().__call__(components, BlockState(**before), i=i, t=t)
        made = {name: value for name, value in seen.as_dict().items() if value is not before.get(name)}
        for name, value in self.bring_back(made, rows, weights).items():
            setattr(block_state, name, value)
        return components, block_state

    def rows(self, components, block_state, i: int) -> list[int]:
        """The rows that it sees, of pictures x prompts."""
        return list(range(len(block_state.region_begins)))

    def seen(self, block_state, rows: list[int]) -> dict[str, Any]:
        """What is in the loop, with these rows."""
        pictures, count = block_state.region_weights.shape[:2]
        of_picture = diffdiff_rows.choose([row // count for row in rows])
        of_prompt, seen = diffdiff_rows.choose(rows), {}
        for name, value in block_state.as_dict().items():
            if name in NOT_ASKED:
                continue
            value = diffdiff_rows.change_rows(value, pictures * count, of_prompt, self.family, name)
            seen[name] = diffdiff_rows.change_rows(value, pictures, of_picture, self.family, name)
        return seen

    def bring_back(self, made: dict[str, Any], rows: list[int], weights: torch.Tensor) -> dict[str, Any]:
        """What it has made, for the loop's other blocks."""
        return made


class DiffDiffRegionalDenoiser(DiffDiffRegional):
    """Predicts the noise with the prompt of each region, and blends the predictions.

    A region that has not released anything yet costs nothing.
    """

    def rows(self, components, block_state, i: int) -> list[int]:
        if hasattr(getattr(components, "guider", None), "momentum_buffer"):  # it has the rows of the step before
            return super().rows(components, block_state, i)
        count = block_state.region_weights.shape[1]
        return rows_of_step(block_state.region_begins, i // components.scheduler.order, count)

    def bring_back(self, made: dict[str, Any], rows: list[int], weights: torch.Tensor) -> dict[str, Any]:
        return {"noise_pred": blend(made["noise_pred"], rows, weights)}


class DiffDiffAutoRegionTextsStep(diffdiff_docs.Documented, AutoPipelineBlocks):
    """`DiffDiffRegionTextsStep` where there are `region_texts`."""

    block_classes = [DiffDiffRegionTextsStep]
    block_names = ["region_texts"]
    block_trigger_inputs = ["region_texts"]
