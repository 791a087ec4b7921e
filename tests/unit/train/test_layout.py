"""The bytes are those that safetensors makes, so everything that reads its files reads ours."""

import pytest
import torch
from safetensors.torch import load, save

from halfbyte.train.layout import TYPES, lay_out
from toy_training import same


def every_type():
    """Names that sort otherwise as text than as bytes would, marks that JSON escapes, no dimension, no element, and rows that lie apart."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for number, dtype in enumerate(TYPES):
        for shape in ((3, 5), (), (0, 4), (7,)):
            made[f'{len(shape)}.Ä"\\\n\U0001f600{number}.{shape}'] = (torch.randn(shape, generator=generator) * 9).to(dtype)
    made["turned"] = torch.randn(5, 6, generator=generator).t()
    made["every second"] = torch.randn(10, generator=generator)[::2]
    return made


@pytest.mark.parametrize("names", ["all", "none", "one"])
def test_it_is_what_safetensors_makes(names):
    tensors = {"all": every_type(), "none": {}, "one": {"weight": torch.arange(3)}}[names]
    assert bytes(lay_out(tensors)) == save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert same(load(bytes(lay_out(tensors))), tensors)


def test_it_is_a_picture():
    """What becomes of a tensor afterwards does not change it, and what needs a gradient is no hindrance."""
    weight = torch.nn.Parameter(torch.ones(3))
    picture = lay_out({"weight": weight})
    before = bytes(picture)
    with torch.no_grad():
        weight.fill_(2)
    assert bytes(picture) == before != bytes(lay_out({"weight": weight}))
