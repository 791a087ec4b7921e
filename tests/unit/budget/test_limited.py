"""The allocator under a limit: the same as without one until the limit is met, then idle pages come back; held against rows tried on an H200."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from halfbyte.budget.allocator import LARGE_PAGE
from halfbyte.budget.choose import TIGHT_SPARE, smallest_way
from halfbyte.budget.limited import HOLE, USED, LimitedAllocator, OutOfMemory
from halfbyte.budget.predict import tight_peak, training_peak
from halfbyte.budget.shape import read_shape
from halfbyte.budget.step import Work

MB = 2**20
MISTRAL = {
    "model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 10**6, "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
FOUND = Path(__file__).parents[3] / "benchmarks" / "results" / "budgets.json"


def smallest_work(tokens: int) -> Work:
    work = Work(read_shape(MISTRAL), 1, tokens, ())
    return replace(work, layers=smallest_way(work).placements(work.shape.layers))


@pytest.mark.parametrize("tokens", [512, 3000])
def test_without_need_it_reserves_what_the_plain_one_does(tokens):
    plain, limited = training_peak(smallest_work(tokens)), tight_peak(smallest_work(tokens), 10**13)
    assert (limited.reserved_bytes, limited.allocated_bytes, limited.launches) == (plain.reserved_bytes, plain.allocated_bytes, plain.launches)


def test_idle_pages_are_mapped_where_they_are_needed():
    """60 MB lie free in two holes that hold 40 at most, and 60 are asked for: without handing back, 140 would be mapped."""
    allocator = LimitedAllocator(120 * MB)
    blocks = [allocator.malloc(size * MB) for size in (40, 20, 20, 20)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    assert allocator.reserved == 100 * MB
    big = allocator.malloc(60 * MB)
    assert (allocator.releases, allocator.reserved, allocator.allocated) == (1, 100 * MB, 100 * MB)
    with pytest.raises(OutOfMemory):
        allocator.malloc(40 * MB)
    allocator.free(big)
    allocator.malloc(80 * MB)
    assert allocator.reserved <= 120 * MB


@pytest.mark.parametrize("seed", range(5))
def test_pieces_never_overlap_and_what_is_mapped_adds_up(seed):
    drawn = random.Random(seed)
    limit = 300 * MB
    allocator, held = LimitedAllocator(limit), []
    for _ in range(800):
        if held and drawn.random() < 0.5:
            allocator.free(held.pop(drawn.randrange(len(held))))
        else:
            try:
                held.append(allocator.malloc(drawn.choice([700, MB // 2, 3 * MB, 11 * MB, drawn.randrange(1, 60 * MB)])))
            except OutOfMemory:
                assert allocator.allocated + 60 * MB + LARGE_PAGE > limit / 2  # holes between what lives may keep pages from coming back
        for pool in (allocator.small, allocator.large):
            pieces = sorted(pool.at.values(), key=lambda piece: piece.address)
            assert all(one.address + one.size == other.address and other.before is one for one, other in itertools.pairwise(pieces))
            assert all((one.state, other.state) != (HOLE, HOLE) for one, other in itertools.pairwise(pieces))
            assert sum(piece.size for piece in pieces if piece.state != HOLE) == pool.mapped
            assert pool.free == sorted((piece.size, piece.address) for piece in pieces if piece.state not in (USED, HOLE))
        assert allocator.allocated == sum(size for *_, size in held) <= allocator.reserved <= limit + LARGE_PAGE


def test_it_gives_up_where_the_plain_allocator_could_not_do_it_either():
    work = smallest_work(4096)
    assert tight_peak(work, training_peak(work).allocated_bytes - 1) is None


@pytest.mark.parametrize("budget", ["8", "24"])
def test_rows_that_are_called_tight_were_trained(budget):
    """Of what was tried on the GPU under the limit: nothing that ran out is called fitting, and what is called too long is 5 % from the longest found."""
    found = json.loads(FOUND.read_text(encoding="utf-8"))[f"longest row at {budget} GB"]
    limit = int(found["limit_bytes"] * (1 - TIGHT_SPARE))
    called = {one["tokens"]: tight_peak(smallest_work(one["tokens"]), limit) is not None for one in found["tried"]}
    assert len(called) > 5
    assert not [one["tokens"] for one in found["tried"] if called[one["tokens"]] and not one["fits"]]
    assert max(tokens for tokens, fits in called.items() if fits) > 0.94 * found["found_tokens"]
    assert training_peak(smallest_work(found["found_tokens"])).reserved_bytes > found["limit_bytes"]  # it was not let be
