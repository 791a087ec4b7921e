"""The head by pieces: any number of rows at a time is one loss and one gradient, and only supervised places have one."""

import pytest
import torch
import torch.nn.functional as F

from halfbyte.budget.fast_sizes import LOGITS, rows_at_a_time
from halfbyte.fast import head
from halfbyte.fast.head import Head, loss_and_gradient
from halfbyte.fast.norms import RmsNorm
from halfbyte.kernels import reference
from tolerances import SAME_GRADIENT

TOKENS, WIDTH, WORDS, SPARE = 23, 16, 40, 64


@pytest.mark.parametrize("rows", [1, 5, 7, 64])
def test_pieces_of_any_size_are_the_definition(monkeypatch, rows):
    monkeypatch.setattr(head, "rows_at_a_time", lambda *_: rows)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    weight, norm = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((WORDS, WIDTH), (WIDTH,)))
    places = torch.tensor([0, 3, 4, 5, 9, 10, 11, 12, 13, 14, 20, 22, 0])
    targets = torch.randint(WORDS, (13,), generator=generator).index_fill(0, torch.tensor([12]), -1)  # the last fills up
    logits = (F.rms_norm(x, (WIDTH,), norm, 1e-5) @ weight.T)[places[:12]]
    loss = F.cross_entropy(logits, targets[:12], reduction="sum")
    (loss * 0.25).backward()
    with torch.no_grad():
        seen, gradient = loss_and_gradient(Head(RmsNorm(norm, 1e-5), weight), x.detach(), places, targets, torch.tensor(0.25), SPARE, reference)
    assert float(seen) == pytest.approx(float(loss.detach()), rel=SAME_GRADIENT)
    assert gradient.shape == (TOKENS, WIDTH + SPARE)
    assert torch.allclose(gradient[:, :WIDTH], x.grad, rtol=SAME_GRADIENT, atol=1e-12)
    assert not gradient[[1, 2, 6, 21]].any()


def test_logits_of_a_piece_take_one_size_whatever_the_vocabulary():
    for words in (32_000, 65_024, 128_256, 152_064):
        assert 0.5 * LOGITS < rows_at_a_time(words) * words <= LOGITS
