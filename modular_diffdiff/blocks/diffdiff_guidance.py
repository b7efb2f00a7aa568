"""Guidance in one call: the conditions of a step go through the model as one batch."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from . import diffdiff_block, diffdiff_docs, diffdiff_refusals, diffdiff_rows


CONDITIONS = ["pred_cond", "pred_uncond"]

BadInputError = diffdiff_refusals.BadInputError


def only_combines(guider: BaseGuidance) -> bool:
    """Whether a guider only combines predictions of one model, and does nothing to it between its calls."""
    kind = type(guider)
    return kind.prepare_models is BaseGuidance.prepare_models and kind._input_predictions == CONDITIONS


def join(conditions: list[BlockState], rows: int, family: diffdiff_block.FamilyTraits) -> BlockState:
    """The conditions of a step as one, whose tensors have the rows of all: those of the first, then the second's.

    Args:
        conditions: What a guider has prepared, tensors of `rows` rows each.
        rows: The number of outputs.
        family: Says which values are shared by all rows, and whether others are lists of rows.

    Raises:
        BadInputError: If they do not fit in one batch, as prompts of different lengths where the model takes no mask.
    """
    fields = [condition.as_dict() for condition in conditions]
    for name in fields[0]:
        if f"{name}_mask" in fields[0] and all(one[name] is not None for one in fields):
            pad(fields, name, f"{name}_mask")
    joined = {name: _join_values(name, [one[name] for one in fields], rows, family) for name in fields[0]}
    return BlockState(**joined)


def check_fit(name: str, values: list[torch.Tensor | None], rows: int) -> None:
    """Refuses what prompt and negative prompt have become, where they are no tensors of one shape and so many rows."""
    shapes = {getattr(value, "shape", None) for value in values}
    if len(shapes) > 1 or len(values[0]) != rows:
        both = " and ".join(map(diffdiff_refusals.describe, values))
        raise BadInputError(
            f"`batch_guidance` is True, but `{name}` is {both} for prompt and negative prompt, which do not fit in one "
            "batch. Leave it out, or give a negative prompt of as many tokens."
        )


def pad(fields: list[dict[str, Any]], name: str, mask: str) -> None:
    """Brings embeddings (B, tokens, ...) and their masks (B, tokens) to one length, with tokens that do not count."""
    lengths = {one[name].shape[1] for one in fields}
    if len(lengths) == 1 and all(one[mask] is None for one in fields):
        return
    for one in fields:
        if one[mask] is None:
            one[mask] = one[name].new_ones(one[name].shape[:2], dtype=torch.bool)
        for key in (name, mask):
            rows, tokens, *features = one[key].shape
            one[key] = torch.cat([one[key], one[key].new_zeros(rows, max(lengths) - tokens, *features)], dim=1)


def _join_values(name: str, values: list[Any], rows: int, family: diffdiff_block.FamilyTraits) -> Any:
    first = values[0]
    if isinstance(first, str):  # the name that the guider gives a condition
        return "+".join(values)
    if isinstance(first, list) and all(isinstance(value, list) for value in values):
        if family.lists:
            return [row for value in values for row in value]
        return [_join_values(name, list(parts), rows, family) for parts in zip(*values, strict=True)]
    if name in family.shared or all(value is None for value in values):
        return first
    check_fit(name, values, rows)
    return torch.cat(values)


class _StandIn:
    """Stands in for an object, and has its attributes."""

    def __init__(self, stands_for: Any):
        self._stands_for = stands_for

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stands_for, name)


class _Guider(_StandIn):
    """A guider whose conditions are one, until they are combined; it serves all steps of a loop."""

    def __init__(self, guider: BaseGuidance, rows: int, family: diffdiff_block.FamilyTraits):
        super().__init__(guider)
        self.rows, self.family, self.conditions = rows, family, [None]

    def prepare_inputs(self, *args: Any) -> list[BlockState]:
        return self.joined(self._stands_for.prepare_inputs(*args))

    def prepare_inputs_from_block_state(self, *args: Any) -> list[BlockState]:
        return self.joined(self._stands_for.prepare_inputs_from_block_state(*args))

    def joined(self, conditions: list[BlockState]) -> list[BlockState]:
        self.conditions = conditions
        return [join(conditions, self.rows, self.family)] if len(conditions) > 1 else conditions

    def __call__(self, data: list[BlockState]) -> Any:
        predictions = data[0].noise_pred.chunk(len(self.conditions))
        for condition, prediction in zip(self.conditions, predictions, strict=True):
            condition.noise_pred = prediction
        return self._stands_for(self.conditions)


class _Model(_StandIn):
    """A model that is called once for all conditions."""

    def __init__(self, model: torch.nn.Module, guider: _Guider):
        super().__init__(model)
        self.guider = guider

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rows, times, family = self.guider.rows, len(self.guider.conditions), self.guider.family
        if times == 1:
            return self._stands_for(*args, **kwargs)
        repeat = diffdiff_rows.repeat(times)
        args = [diffdiff_rows.change_rows(given, rows, repeat, family) for given in args]
        answer = self._stands_for(*args, **diffdiff_rows.change_rows(kwargs, rows, repeat, family))
        if kwargs.get("guess_mode"):  # a ControlNet then acts on the first condition alone
            down, middle = answer
            for residual in (*down, middle):
                residual[rows:] = 0
        return answer


class DiffDiffBatchGuidance(diffdiff_docs.Documented):
    """Predicts the noise with guidance; with `batch_guidance` the model is called once for all conditions.

    A mixin. The denoiser finds one condition with the rows of all, models that repeat what else they are given, and a
    guider that gets each condition its own rows of the prediction.
    """

    family = diffdiff_block.FamilyTraits()

    @property
    def inputs(self) -> list[InputParam]:
        return [*super().inputs, diffdiff_docs.input_param("batch_guidance")]

    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        seen = components
        if block_state.batch_guidance:
            if not hasattr(block_state, "in_one_call"):
                block_state.in_one_call = self.in_one_call(components, len(block_state.latents))
            seen = block_state.in_one_call
        _, block_state = super().__call__(seen, block_state, i=i, t=t)
        return components, block_state

    def in_one_call(self, components, rows: int) -> _StandIn:
        """The components as the denoiser sees them."""
        seen, names = _StandIn(components), {spec.name for spec in self.expected_components}
        for name in names & {*diffdiff_block.GUIDERS}:
            setattr(seen, name, _Guider(getattr(components, name), rows, self.family))
        for name in names - {*diffdiff_block.GUIDERS}:
            guider = seen.guider_2 if name.endswith("_2") else seen.guider
            setattr(seen, name, _Model(getattr(components, name), guider))
        return seen
