"""What an input takes is said in the same words by its documentation and its refusal."""

import pytest
import torch
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from hypothesis import given
from hypothesis import strategies as st

from modular_diffdiff import BadInputError, SDXLDiffDiffAutoBlocks
from modular_diffdiff.blocks import diffdiff_kinds as kinds

from .helpers import diffdiff, picture


GOOD = {"prompt": "a pear", "image": picture(16, 16), "diffdiff_map": torch.zeros(4, 4), "num_inference_steps": 1}


def documented() -> list[InputParam]:
    """The inputs that a table decides on; a map's reader says what it found instead."""
    params = SDXLDiffDiffAutoBlocks().get_workflow("diffdiff").inputs
    return [param for param in params if " Takes " in param.description and not param.name.endswith(("_map", "_maps"))]


@pytest.mark.parametrize("param", documented(), ids=lambda param: param.name)
def test_a_refusal_says_what_the_documentation_says(tiny, param):
    takes = param.description.rpartition(" Takes ")[2].removesuffix(".")
    with pytest.raises(BadInputError) as refusal:
        diffdiff(tiny)(**(GOOD | {param.name: object()}))
    assert f"`{param.name}` is <object" in str(refusal.value)
    assert f"it takes {takes}" in str(refusal.value)


@given(st.floats(allow_nan=True) | st.integers() | st.booleans(), st.integers(-9, 9), st.integers(0, 9))
def test_numbers_are_those_within_their_range(value, low, width):
    within = not isinstance(value, bool) and low <= value <= low + width
    assert kinds.number(low, low + width).accepts(value) == within
    assert kinds.whole(low, low + width).accepts(value) == (within and isinstance(value, int))


@given(st.text(st.characters(exclude_categories=())))
def test_texts_are_those_that_can_be_written(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        assert not kinds.texts().accepts(text)
        assert not kinds.texts().accepts(["a pear", text])
    else:
        assert kinds.texts().accepts(text)


@given(st.lists(st.floats(0, 1000), min_size=1))
def test_a_schedule_does_not_rise(values):
    falling = sorted(values, reverse=True)
    assert kinds.schedule(float).accepts(falling)
    assert kinds.schedule(float).accepts(torch.tensor(falling))
    assert kinds.schedule(float).accepts(values) == (values == falling)
