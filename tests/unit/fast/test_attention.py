"""Attention as it is defined, against torch's own with a mask, and which kernel is taken for which documents."""

import pytest
import torch
import torch.nn.functional as F

from halfbyte.errors import TrainingError
from halfbyte.fast import attention
from halfbyte.fast.attention import Documents, attend, attend_backward, check_offsets, kernel_for
from tolerances import KERNEL_EXACT

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def mask(lengths, window):
    """(T, T), True where a query may look."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(sum(lengths))
    back = place[:, None] - place
    return (document[:, None] == document) & (back >= 0) & (back < (window or len(place)))


@pytest.mark.parametrize("lengths", [(7,), (1,), (3, 1, 5), (4, 4), (1, 1, 1)])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 2, 100])
def test_attention_and_its_gradients(lengths, heads, window):
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v, g = (torch.randn(tokens, count, 8, dtype=torch.float64) for count in (*heads[:1], heads[1], heads[1], heads[0]))
    leaves = [one.clone().requires_grad_() for one in (q, k, v)]
    expected = F.scaled_dot_product_attention(*(one.transpose(0, 1) for one in leaves), mask(lengths, window), scale=0.3, enable_gqa=True).transpose(0, 1)
    expected.backward(g)
    documents = Documents.of(lengths, CPU)
    out, kept = attend(q, k, v, documents, window, 0.3)
    torch.testing.assert_close(out, expected.detach(), rtol=0, atol=KERNEL_EXACT)
    for ours, leaf in zip(attend_backward(g, q, k, v, out, kept, documents, window, 0.3), leaves, strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=0, atol=KERNEL_EXACT)


def test_documents_know_their_borders():
    documents = Documents.of((3, 4), CPU)
    assert documents.borders.tolist() == [0, 3, 7]
    assert documents.borders.dtype == torch.int32
    assert documents.longest == 4
    assert not documents.alike
    assert Documents.of((5, 5), CPU).alike


@pytest.mark.parametrize(
    ("chip", "lengths", "window", "head_dim", "kernel"),
    [
        ((9, 0), (8, 8), None, 128, "cudnn"),
        ((9, 0), (8,), 8, 64, "cudnn"),
        ((9, 0), (8, 8), 7, 128, "flash"),
        ((9, 0), (8, 7), None, 128, "flash"),
        ((9, 0), (8, 8), None, 256, "flash"),
        ((8, 0), (8, 8), None, 128, "flash"),
    ],
)
def test_the_kernel_follows_from_chip_documents_and_window(monkeypatch, chip, lengths, window, head_dim, kernel):
    monkeypatch.setattr(attention.torch.cuda, "get_device_capability", lambda device: chip)
    documents = Documents.of(lengths, CPU)
    assert kernel_for(documents, window, head_dim, GPU) == kernel
    assert kernel_for(documents, window, head_dim, CPU) == "defined"


def test_more_than_the_kernel_can_count_is_refused():
    """(T + 128 documents) x 4,096 in 32 bits: 524,288 (PERFORMANCE 5.7)."""
    fits, beyond = ((100,) * count for count in (2299, 2300))
    check_offsets(Documents.of(fits, CPU), 4096)
    with pytest.raises(TrainingError, match="230,000 tokens in 2,300 documents"):
        check_offsets(Documents.of(beyond, CPU), 4096)
