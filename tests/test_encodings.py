"""`encode_once`: several edits of one picture encode what they share once, and are what they are alone."""

from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest
import torch

from modular_diffdiff import SDXLDiffDiffBlocks, encode_once

from .families import FAMILIES
from .helpers import picture, seeded
from .test_families import ours, run, small_edits, undecoded  # noqa: F401


@contextmanager
def counted(pipe):
    """Counts, by component, how often a part that encodes does so."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(mock.patch.object(part, method, wraps=getattr(part, method)))
            for start, method in (("text_encoder", "forward"), ("vae", "encode"))
            for name, part in pipe.components.items()
            if name.startswith(start)
        }


def times(mocks) -> dict[str, int]:
    """How often each has run since the last time that was asked; those that have."""
    made = {name: each.call_count for name, each in mocks.items() if each.call_count}
    for each in mocks.values():
        each.reset_mock()
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_two_seeds_encode_once_and_draw_what_they_draw_alone(name):
    pipe = undecoded(ours(name))
    alone = [run(pipe, name, generator=seeded(seed)).latents for seed in range(2)]
    with counted(pipe) as mocks, encode_once(pipe):
        first = run(pipe, name, generator=seeded(0)).latents
        assert times(mocks).keys() == mocks.keys()
        second = run(pipe, name, generator=seeded(1)).latents
        assert times(mocks) == {}
    assert torch.equal(first, alone[0])
    assert torch.equal(second, alone[1])


def test_only_what_is_new_is_encoded(tiny):
    pipe = SDXLDiffDiffBlocks().init_pipeline()
    pipe.update_components(**{name: part for name, part in tiny.items() if name in pipe.component_names})
    texts = ("text_encoder", "text_encoder_2")
    default = {
        "prompt": "a pear",
        "negative_prompt": "a lemon",
        "image": picture(),
        "diffdiff_map": torch.zeros(32, 32),
        "num_inference_steps": 2,
    }
    default |= {"output_type": "latent", "output": "latents"}
    changes = [
        ({}, dict.fromkeys(texts, 2) | {"vae": 1}),  # the prompt and the negative prompt
        ({"diffdiff_map": torch.ones(32, 32)}, {}),
        ({"prompt": "a cup"}, dict.fromkeys(texts, 1)),
        ({"prompt": "a pear"}, {}),
        ({"image": picture(seed=1)}, {"vae": 1}),
        ({"image": picture(64, 64)}, {"vae": 1}),
    ]

    def edits():
        asked = dict(default)
        for number, (change, _) in enumerate(changes):
            asked |= change
            yield pipe(**asked, generator=seeded(number))

    alone = list(edits())
    with counted(pipe) as mocks, encode_once(pipe):
        for result, expected, (_, encoded) in zip(edits(), alone, changes, strict=True):
            assert torch.equal(result, expected)
            assert times(mocks) == encoded


def test_nothing_is_remembered_afterwards(tiny):
    pipe = SDXLDiffDiffBlocks().init_pipeline()
    pipe.update_components(**{name: part for name, part in tiny.items() if name in pipe.component_names})
    before = {name: dict(vars(part)) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}

    def fail():
        with encode_once(pipe):
            assert vars(pipe.vae) != before["vae"]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {name: vars(pipe.components[name]) for name in before} == before
