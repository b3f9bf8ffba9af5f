# SPDX-License-Identifier: Apache-2.0
"""Losses in other shapes: what is trained, what is recorded, and that both can go wrong."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from _assertions import assert_bitwise
from _cases import float32, table
from _runs import infobatch

import prune_engine as pe

TABLE = table(2.0)


def weighing(weights: list[int]) -> pe.PruneEngine:
    """Return an engine whose samples weigh 1 or 2."""
    engine = infobatch(len(weights))
    engine.buffer.activate(torch.tensor(weights, dtype=torch.uint8), TABLE, 0)
    return engine


def test_tokens_at_weight_one_are_the_language_models_loss_and_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator)
    targets = torch.randint(11, (3, 5), generator=generator)
    targets[0, 3:] = targets[2, :4] = -100
    mask = targets != -100
    want, got = (logits.clone().requires_grad_() for _ in range(2))
    F.cross_entropy(want.flatten(0, 1), targets.flatten()).backward()
    losses = F.cross_entropy(got.flatten(0, 1), targets.flatten(), reduction="none").view(3, 5)
    engine = weighing([1, 1, 1])
    engine.observe(losses, torch.arange(3), reducer=pe.losses.Tokens(mask)).backward()
    assert torch.allclose(got.grad, want.grad, rtol=1e-6, atol=1e-9)
    means = (losses.detach() * mask).sum(1) / mask.sum(1)
    assert_bitwise(engine.scores(), means, "the score is each sequence's own mean")
    other = weighing([1, 2, 1])
    again = logits.clone().requires_grad_()
    losses = F.cross_entropy(again.flatten(0, 1), targets.flatten(), reduction="none").view(3, 5)
    other.observe(losses, torch.arange(3), reducer=pe.losses.Tokens(mask)).backward()
    assert torch.allclose(again.grad[1], 2 * want.grad[1]), "the weight is the sequence's"
    assert torch.allclose(again.grad[0], want.grad[0])


def test_tokens_averaged_by_sample_and_with_a_given_denominator():
    losses = float32([1, 3, 5, 7]).view(2, 2)
    mask = torch.tensor([[True, True], [True, False]])
    engine = weighing([1, 2])
    by_sample = engine.observe(
        losses, torch.arange(2), reducer=pe.losses.Tokens(mask, average="samples")
    )
    assert by_sample.item() == (2.0 + 2 * 5.0) / 2
    given = engine.observe(losses, torch.arange(2), reducer=pe.losses.Tokens(mask), denom=10)
    assert given.item() == pytest.approx((4.0 + 2 * 5.0) / 10)
    rows = engine.observe(losses, torch.arange(2), reducer=pe.losses.Tokens(mask), reduction="none")
    assert_bitwise(rows, [4.0, 10.0], "sums")


def test_a_sequence_without_tokens_keeps_its_score_and_its_loss_is_nothing():
    engine = weighing([1, 1])
    engine.observe(float32([7.0, 9.0]), torch.arange(2))
    losses = float32([1.0, math.nan]).view(2, 1).requires_grad_()
    mask = torch.tensor([[True], [False]])
    loss = engine.observe(losses, torch.arange(2), reducer=pe.losses.Tokens(mask))
    loss.backward()
    assert loss.item() == 1.0
    assert_bitwise(losses.grad, torch.tensor([[1.0], [0.0]]), "masked elements are not read")
    assert engine.scores()[1].item() == 9.0
    assert engine.buffer.counters[1].item() == 1


def test_pixels_add_the_heads_and_weigh_them_alike():
    generator = torch.Generator().manual_seed(1)
    main, head = (torch.rand(2, 3, 4, generator=generator).requires_grad_() for _ in range(2))
    mask = torch.rand(2, 3, 4, generator=generator) > 0.3
    engine = weighing([2, 1])
    reducer = pe.losses.Pixels(mask, auxiliary=[(0.4, head)])
    engine.observe(main, torch.arange(2), reducer=reducer).backward()
    count = mask.flatten(1).sum(1)
    means = [(x.detach() * mask).flatten(1).sum(1) / count for x in (main, head)]
    assert torch.allclose(engine.scores(), means[0] + 0.4 * means[1])
    share = mask / count[:, None, None] * torch.tensor([2.0, 1.0])[:, None, None] / 2
    assert torch.allclose(main.grad, share)
    assert torch.allclose(head.grad, 0.4 * share)


def test_pixels_in_one_mean_over_the_batch():
    main = torch.arange(8.0).view(2, 2, 2)
    mask = main < 5
    engine = weighing([1, 1])
    loss = engine.observe(main, torch.arange(2), reducer=pe.losses.Pixels(mask, average="elements"))
    assert loss.item() == main[mask].mean().item()


def mixed_batch(lam: float = 0.7, same: bool = False):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, generator=generator)
    targets = torch.tensor([1, 1, 1, 1] if same else [0, 1, 2, 0])
    return logits, targets, pe.losses.mix_targets(targets, 3, lam)


def test_mixed_targets_are_those_of_the_reversed_batch():
    _, _, mixed = mixed_batch()
    assert torch.allclose(mixed[1], float32([0.0, 0.7, 0.3]))
    assert torch.allclose(mixed[0], float32([1.0, 0.0, 0.0])), "both are of class 0"
    per_row = pe.losses.mix_targets(torch.tensor([0, 1]), 2, torch.tensor([1.0, 0.25]))
    assert_bitwise(per_row, torch.tensor([[1.0, 0.0], [0.75, 0.25]]), "one lam per row")


@pytest.mark.parametrize("same", [False, True])
def test_the_score_of_a_pair_is_low_for_a_model_that_is_right(same):
    logits, targets, mixed = mixed_batch(same=same)
    perfect = torch.log(mixed.clamp(min=1e-30))
    backwards = torch.log(1.0001 - mixed)
    found = []
    for candidate in (perfect, logits, backwards):
        engine = infobatch(4)
        losses = F.cross_entropy(candidate, mixed, reduction="none")
        reducer = pe.losses.MixedPairs(candidate, targets, mixed)
        engine.observe(losses, torch.arange(4), reducer=reducer)
        found.append(engine.scores())
    assert torch.allclose(found[0], torch.zeros(4), atol=1e-6), "the sign of a loss"
    assert bool((found[1] > found[0]).all() and (found[2] > found[1]).any())
    p = torch.softmax(logits, dim=1)
    for i in range(4):
        y = targets[i]
        want = abs(mixed[i, y] - p[i, y]) + abs(mixed[3 - i, y] - p[3 - i, y])
        assert found[1][i].item() == pytest.approx(want.item(), abs=1e-6)


def test_partners_carry_equal_weights_and_the_gradient_has_them():
    logits, targets, mixed = mixed_batch()
    engine = weighing([2, 1, 2, 2])  # pairs (0, 3) and (1, 2)
    losses = torch.ones(4, requires_grad=True)
    rescaled = engine.observe(
        losses,
        torch.arange(4),
        reducer=pe.losses.MixedPairs(logits, targets, mixed),
        reduction="none",
    )
    rescaled.sum().backward()
    assert_bitwise(losses.grad, [2.0, 1.5, 1.5, 2.0], "weights")
    plain = torch.ones(4, requires_grad=True)
    engine.observe(plain, torch.arange(4), reduction="sum").backward()
    assert_bitwise(plain.grad, [2.0, 1.0, 2.0, 2.0], "control: without the reducer")
    assert plain.grad.sum() == losses.grad.sum(), "a pair's weight stays what it was"


def test_a_scalar_is_every_members_and_is_averaged_over_time():
    engine = weighing([1, 2])
    for epoch, value in enumerate((4.0, 2.0)):
        engine.buffer.epoch.fill_(epoch)
        loss = torch.tensor(value, requires_grad=True)
        out = engine.observe(loss, torch.arange(2), reducer=pe.losses.BatchScalar(0.75))
        out.backward()
        assert out.item() == value * 1.5
        assert loss.grad.item() == 1.5, "the mean of the members' weights"
    assert_bitwise(engine.scores(), [3.5, 3.5], "0.75 * 4 + 0.25 * 2")


def test_last_scores_are_the_members(backend):
    buffer = pe.epoch.ScoreBuffer(4, backend=backend)
    buffer.observe(float32([-1.5, 2.0]), torch.tensor([3, 0]))
    assert_bitwise(buffer.last_scores(torch.tensor([0, 1, 3])), [2.0, math.nan, -1.5], "scores")


@pytest.mark.parametrize(
    ("losses", "reducer", "message"),
    [
        (torch.ones(2), pe.losses.Tokens(), r"losses must be \[2, ...\]"),
        (torch.ones(3, 2), pe.losses.Tokens(), r"losses must be \[2, ...\]"),
        (torch.ones(2, 2), pe.losses.Tokens(torch.ones(2, 2)), "mask must be bool"),
        (torch.ones(2, 2), pe.losses.Tokens(torch.ones(2, 1).bool()), "mask must be bool"),
        (torch.ones(2, 2, 2), pe.losses.Pixels(auxiliary=[(1.0, torch.ones(2, 2))]), "auxiliary"),
        (torch.ones(2), pe.losses.BatchScalar(), "scalar"),
        (
            torch.ones(2),
            pe.losses.MixedPairs(torch.ones(3, 2), torch.ones(2), torch.ones(3, 2)),
            "logits",
        ),
        (
            torch.ones(2),
            pe.losses.MixedPairs(torch.ones(2, 2), torch.ones(2), torch.ones(2, 3)),
            "mixed",
        ),
        (
            torch.ones(2),
            pe.losses.MixedPairs(torch.ones(2, 2), torch.ones(3), torch.ones(2, 2)),
            "target",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named_and_nothing_is_recorded(losses, reducer, message):
    engine = weighing([1, 1])
    with pytest.raises(ValueError, match=message):
        engine.observe(losses, torch.arange(2), reducer=reducer)
    assert not engine.buffer.records.any()


def test_parameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="decay"):
        pe.losses.BatchScalar(1.0)
    for make in (pe.losses.Tokens, pe.losses.Pixels):
        with pytest.raises(ValueError, match="average"):
            make(average="tokens")
    with pytest.raises(ValueError, match="score"):
        weighing([1]).observe(
            torch.ones(1, 1), torch.arange(1), score=torch.ones(1), reducer=pe.losses.Tokens()
        )


def test_an_empty_batch_is_nothing():
    engine = weighing([1, 1])
    empty = torch.arange(0)
    assert engine.observe(torch.zeros(0, 3), empty, reducer=pe.losses.Tokens()).item() == 0.0
    assert engine.observe(torch.zeros(0, 2, 2), empty, reducer=pe.losses.Pixels()).item() == 0.0
    assert not engine.buffer.records.any()


HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("average", ["elements", "samples"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_tokens_of_half_precision_are_summed_and_counted_wide(average, dtype, masked):
    losses = torch.full((32, 4096), 20.0, dtype=dtype, requires_grad=True)
    mask = torch.ones(32, 4096, dtype=torch.bool) if masked else None
    engine = weighing([1] * 32)
    loss = engine.observe(losses, torch.arange(32), reducer=pe.losses.Tokens(mask, average=average))
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == 20.0
    assert_bitwise(engine.scores(), [20.0] * 32, "scores")
    assert losses.grad[0, 0].item() == torch.tensor(1 / (32 * 4096), dtype=dtype).item()
    assert not losses.detach()[0].sum().isfinite() or dtype == torch.bfloat16, "control: the sum"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_pixels_of_half_precision_are_summed_and_counted_wide(dtype):
    losses = torch.ones(2, 300, 300, dtype=dtype)
    mask = torch.ones(2, 300, 300, dtype=torch.bool)
    engine = weighing([1, 2])
    reducer = pe.losses.Pixels(mask, auxiliary=[(0.5, losses)])
    loss = engine.observe(losses, torch.arange(2), reducer=reducer)
    assert (loss.dtype, loss.item()) == (dtype, 2.25)
    assert_bitwise(engine.scores(), [1.5, 1.5], "scores")
    engine.observe(losses, torch.arange(2), reducer=pe.losses.Pixels(average="elements"))
    assert engine.scores().tolist() == [1.5, 1.5], "the larger score of an epoch stays"


def test_a_scalar_of_half_precision_is_the_batchs_at_any_size():
    size = 4096
    engine = weighing([1] * size)
    loss = torch.tensor(20.0, dtype=torch.float16)
    assert engine.observe(loss, torch.arange(size), reducer=pe.losses.BatchScalar()).item() == 20.0


def test_a_mean_that_half_precision_cannot_say_is_recorded_all_the_same():
    losses = torch.tensor([[1.0, 1.0078125]], dtype=torch.bfloat16)
    engine = weighing([1])
    engine.observe(losses, torch.arange(1), reducer=pe.losses.Tokens())
    assert_bitwise(engine.scores(), [1.00390625], "the score is not rounded to the losses' dtype")
    assert losses.mean().item() != 1.00390625, "control"


# --- the tokens of a batch with the largest losses, or excess over a reference's -----------------


def chosen_tokens(excess: list[list[float]], mask: list[list[bool]], keep: Fraction) -> set[Any]:
    """Return the tokens that Rho-1 keeps, one at a time; those that tie with the last stay."""
    tokens = [(i, t) for i, row in enumerate(mask) for t, counts in enumerate(row) if counts]
    ascending = sorted(excess[i][t] for i, t in tokens)
    edge = ascending[math.ceil((len(tokens) - 1) * (1 - keep))]
    return {(i, t) for i, t in tokens if excess[i][t] >= edge}


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("with_reference", [False, True])
def test_the_largest_tokens_of_a_batch_are_trained_and_all_are_scored(keep, with_reference):
    generator = torch.Generator().manual_seed(4)
    losses = torch.rand(6, 9, generator=generator, requires_grad=True)
    known = torch.rand(6, 9, generator=generator).half()
    mask = torch.rand(6, 9, generator=generator) < 0.7
    reference = known if with_reference else None
    engine = pe.PruneEngine(6, pe.policies.Subset(range(6), [1.0, 2, 3, 4, 5, 6]), num_epochs=2)
    indices = torch.tensor([3, 0, 5, 1, 2, 4])
    loss = engine.observe(
        losses, indices, reducer=pe.losses.TopTokens(keep, reference=reference, mask=mask)
    )
    loss.backward()
    excess = losses.detach() - (known.float() if with_reference else 0)
    kept = chosen_tokens(excess.tolist(), mask.tolist(), Fraction(str(keep)))
    weights = (indices + 1).tolist()
    want = sum(weights[i] * losses[i, t].item() for i, t in kept) / len(kept)
    assert loss.item() == pytest.approx(want, rel=1e-6)
    trained = {(i, t) for i, t in torch.nonzero(losses.grad).tolist()}
    assert trained == kept
    counts = mask.sum(1)
    means = torch.where(mask, losses, 0).sum(1) / counts
    torch.testing.assert_close(engine.scores()[indices], means.detach())
    if with_reference and keep < 1:
        other = chosen_tokens(losses.tolist(), mask.tolist(), Fraction(str(keep)))
        assert other != kept, "control: the reference decides"


def test_everything_kept_is_what_tokens_trains():
    losses = torch.rand(3, 4, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    reduced = [
        each.reduce(losses, 3, list)
        for each in (pe.losses.TopTokens(1.0, mask=mask), pe.losses.Tokens(mask))
    ]
    assert torch.equal(reduced[0].losses, reduced[1].losses)
    assert torch.equal(reduced[0].score, reduced[1].score)
    assert reduced[0].denom == reduced[1].denom == 10


def test_a_loss_that_is_no_number_is_trained_and_not_left_out():
    losses = torch.tensor([[1.0, torch.nan, 3.0], [2.0, 0.5, 0.1]])
    assert pe.losses.TopTokens(0.3).reduce(losses, 2, list).losses.isnan().tolist() == [True, False]


def test_a_reference_is_stored_once_and_given_by_sample():
    reference = pe.losses.ReferenceLosses(5, 4)
    made = torch.rand(5, 4, generator=torch.Generator().manual_seed(3))
    reference.store(torch.tensor([4, 1]), made[[4, 1]])
    assert not reference.complete
    with pytest.raises(ValueError, match="were stored"):
        reference.of(torch.tensor([1, 0]))
    reference.store(torch.tensor([0, 2, 3]), made[[0, 2, 3], :3])
    assert reference.complete
    assert torch.equal(reference.of(torch.tensor([4, 1])), made[[4, 1]].half())
    assert torch.equal(reference.of(torch.tensor([3]), 2), made[[3], :2].half())
    assert reference.losses.element_size() == 2
    with pytest.raises(ValueError, match=r"losses must be \[1, at most 4\]"):
        reference.store(torch.tensor([0]), torch.ones(1, 5))
    with pytest.raises(TypeError, match="losses must be floating"):
        reference.store(torch.tensor([0]), torch.ones(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"keep": 0.0}, ValueError, "keep must be in"),
        ({"keep": 1.5}, ValueError, "keep must be in"),
        ({"keep": "all"}, TypeError, "keep must be a number"),
        ({"reference": [1.0]}, TypeError, "reference must be a tensor"),
        ({"reference": torch.ones(2, 3)}, ValueError, "reference must be"),
        ({"mask": torch.ones(2, 2)}, ValueError, "mask must be bool"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        pe.losses.TopTokens(**arguments).reduce(torch.ones(2, 2), 2, list)
