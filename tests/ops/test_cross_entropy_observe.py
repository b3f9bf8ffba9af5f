# SPDX-License-Identifier: Apache-2.0
"""cross_entropy_observe: F.cross_entropy, the scores' formulas and observe, in one operator."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from _assertions import assert_bitwise
from _cases import float32, int64, records_of, salts, table, threads
from _logits import Case, assert_agrees, tolerance
from _runs import infobatch
from hypothesis import given, settings
from hypothesis import strategies as st

import prune_engine as pe
from prune_engine import backends
from prune_engine.backends import native
from prune_engine.losses import scores

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REFERENCE = backends.load("reference")
CLASSES = st.sampled_from([1, 2, 3, 15, 16, 17, 100, 1000, 1023, 1024, 1025, 5000])


@settings(max_examples=60)
@given(
    batch_size=st.sampled_from([0, 1, 2, 7, 33]),
    num_classes=CLASSES,
    dtype=st.sampled_from(DTYPES),
    kind=st.integers(0, len(scores.SCORES) - 1),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
    salt=salts,
    thread_count=threads,
)
def test_cpu_agrees_with_the_reference(
    num_threads, batch_size, num_classes, dtype, kind, smoothing, weighted, salt, thread_count
):
    case = Case(batch_size, num_classes, salt, dtype=dtype)
    weight = None
    if weighted:
        weight = torch.rand(num_classes, generator=torch.Generator().manual_seed(salt))
    labels = (weight, smoothing, -100)
    want = case.run(REFERENCE, kind, labels)
    with num_threads(thread_count):
        got = case.run(backends.load("cpu"), kind, labels)
    assert_agrees(case, got, want)


@given(kind=st.integers(0, 5), smoothing=st.sampled_from([0.0, 0.1]), salt=salts)
def test_cpu_meets_inf_and_nan_as_the_reference_does(kind, smoothing, salt):
    case = Case(9, 40, salt, awkward=True)
    want = case.run(REFERENCE, kind, (None, smoothing, -100))
    got = case.run(backends.load("cpu"), kind, (None, smoothing, -100))
    assert_agrees(case, got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_the_loss_and_its_gradient_are_those_of_torch(
    backend, dtype, smoothing, weighted, ignore_index
):
    case = Case(24, 9, 7, dtype=dtype, ignored=ignore_index == -100)
    case.fixed[1] = table(2.0, 1.3333334, 8.0, 0.1)  # float16 cannot hold a gradient of 65536
    weight = float32([0.5, 2.0, 0.0, 1.0, 1.0, 3.0, 0.25, 1.0, 1.0]) if weighted else None
    logits = case.logits.clone().requires_grad_()
    buffer = pe.epoch.ScoreBuffer(40, backend=backend)
    buffer.activate(case.fixed[0], case.fixed[1], 3)
    rescaled, weights, _ = buffer.cross_entropy_observe(
        logits, case.targets, case.indices, label_smoothing=smoothing, class_weight=weight,
        ignore_index=ignore_index,
    )  # fmt: skip
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    plain = case.logits.to(torch.float64).requires_grad_()
    want = F.cross_entropy(
        plain, case.targets, reduction="none", label_smoothing=smoothing,
        weight=None if weight is None else weight.double(), ignore_index=ignore_index,
    ) * weights.double()  # fmt: skip
    assert rescaled.dtype == wide
    torch.testing.assert_close(rescaled, want.to(wide), **tolerance(dtype))
    upstream = torch.linspace(-1, 2, 24, dtype=torch.float64)
    want.backward(upstream)
    rescaled.backward(upstream.to(wide))
    # One rounding to the dtype of the logits: half a unit in its last place.
    unit = torch.finfo(dtype).eps
    biggest = float(weights.max())
    torch.testing.assert_close(
        logits.grad.double(), plain.grad, rtol=1e-4 + unit, atol=biggest * 2e-6 + unit * 1e-3
    )


@pytest.mark.parametrize("name", scores.SCORES[:-1])
def test_a_score_is_its_function_unweighted_unsmoothed_and_detached(backend, name):
    case = Case(16, 12, 11, ignored=False)
    function = getattr(scores, "nll" if name == "loss" else name)
    arguments = (case.targets,) if name in ("loss", "el2n") else ()
    buffer = pe.epoch.ScoreBuffer(40, backend=backend)
    got = buffer.cross_entropy_observe(
        case.logits.clone().requires_grad_(), case.targets, case.indices, score=name,
        label_smoothing=0.3, class_weight=torch.rand(12, generator=torch.Generator()),
    )[2]  # fmt: skip
    torch.testing.assert_close(got, function(case.logits, *arguments), **tolerance(torch.float32))
    assert not got.requires_grad


def test_what_the_model_is_sure_of_does_not_cancel(backend):
    # In float32, 1 - p is 0 here; the scores of easy samples must still be ordered.
    buffer = pe.epoch.ScoreBuffer(2, backend="cpu")
    logits = float32([[20.0, 0.0, 0.0], [25.0, 0.0, 0.0]])
    for name in ("loss", "el2n", "least_confidence", "margin", "entropy"):
        got = buffer.cross_entropy_observe(logits, int64([0, 0]), int64([0, 1]), score=name)[2]
        assert 0 < got[1] < got[0] < 1e-7, name


@given(salt=salts)
def test_forgetting_has_the_same_bits_on_both_and_counts_events(salt):
    generator = torch.Generator().manual_seed(salt)
    buffers = [pe.epoch.ScoreBuffer(6, backend=name) for name in ("reference", "cpu")]
    histories: list[list[bool]] = [[] for _ in range(6)]
    for epoch in range(6):
        shown = torch.randperm(6, generator=generator)[:4]
        logits = torch.randn(4, 3, generator=generator)
        targets = torch.randint(3, (4,), generator=generator)
        for buffer in buffers:
            buffer.epoch.fill_(epoch)
            buffer.cross_entropy_observe(logits, targets, shown, score="forgetting")
        for sample, right in zip(shown.tolist(), logits.argmax(1) == targets, strict=True):
            histories[sample].append(bool(right))
    assert_bitwise(buffers[1].records, buffers[0].records, "records")
    events = scores.forgetting_events(buffers[1].scores).tolist()
    for got, seen in zip(events, histories, strict=True):
        forgotten = sum(a and not b for a, b in itertools.pairwise(seen))
        want = forgotten if any(seen) else math.inf
        assert got == want or (math.isnan(got) and not seen)


def test_forgetting_does_not_depend_on_the_order_within_an_epoch(backend):
    logits = float32([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])  # right, wrong, right
    found = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        buffer = pe.epoch.ScoreBuffer(1, backend=backend)
        zeros = torch.zeros(3, dtype=torch.int64)
        buffer.cross_entropy_observe(logits[:1], zeros[:1], zeros[:1], score="forgetting")
        buffer.epoch.fill_(1)
        buffer.cross_entropy_observe(logits[order], zeros, zeros, score="forgetting")
        for row in order:
            buffer.cross_entropy_observe(
                logits[row : row + 1], zeros[:1], zeros[:1], score="forgetting"
            )
        found.append(buffer.records.clone())
    for records in found:
        assert_bitwise(records, found[0], "records")
    assert scores.forgetting_events(buffer.scores).item() == 1.0


def test_edge_case_01_an_empty_batch_is_nothing(backend):
    buffer = pe.epoch.ScoreBuffer(4, backend=backend)
    logits = torch.zeros(0, 5, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    rescaled, weights, score = buffer.cross_entropy_observe(logits, nothing, nothing)
    rescaled.sum().backward()
    assert rescaled.shape == weights.shape == score.shape == (0,)
    assert logits.grad.shape == (0, 5)
    assert not buffer.records.any() and buffer.counters[0] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_edge_case_02_a_row_that_is_not_finite_is_only_counted(backend, bad):
    buffer = pe.epoch.ScoreBuffer(2, backend=backend)
    buffer.observe(float32([0.25, 0.5]), int64([0, 1]))
    buffer.epoch.fill_(1)
    for name in scores.SCORES:
        logits = float32([[bad, 0.0], [1.0, 0.0]])
        rescaled, _, score = buffer.cross_entropy_observe(
            logits, int64([0, 0]), int64([0, 1]), score=name
        )
        assert math.isnan(rescaled[0]) and math.isnan(score[0]), name
    assert_bitwise(buffer.records[:1], records_of([0.25]), "the last finite score")
    assert buffer.counters[1].item() == len(scores.SCORES)
    assert buffer.records[1] >> 32 == 2, "control: the finite one is recorded"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_classes", [1, 7, 1025, 2050])
def test_edge_case_02_a_nan_is_seen_wherever_it_stands(backend, dtype, num_classes):
    # Alone in what is read first, or last: there is no larger logit beside it to measure it by.
    for place in {0, num_classes // 2, num_classes - 1}:
        buffer = pe.epoch.ScoreBuffer(2, backend=backend)
        logits = torch.zeros(2, num_classes, dtype=dtype)
        logits[0, place] = torch.nan
        targets = int64([num_classes // 3] * 2)
        rescaled, _, score = buffer.cross_entropy_observe(logits, targets, int64([0, 1]))
        assert torch.isnan(rescaled).tolist() == [True, False], place
        assert torch.isnan(score).tolist() == [True, False], place
        assert buffer.read_counters().nonfinite == 1


def test_an_ignored_row_costs_nothing_and_keeps_its_score(backend):
    buffer = pe.epoch.ScoreBuffer(2, backend=backend)
    buffer.observe(float32([0.25]), int64([1]))
    logits = float32([[math.nan, 0.0], [3.0, 0.0]]).requires_grad_()
    rescaled, _, score = buffer.cross_entropy_observe(
        logits, int64([7, 1]), int64([1, 0]), ignore_index=7
    )
    rescaled.sum().backward()
    assert rescaled[0] == 0.0 and math.isnan(score[0])
    assert_bitwise(logits.grad[0], [0.0, 0.0], "gradient")
    assert_bitwise(buffer.records[1:], records_of([0.25]), "record")
    assert buffer.counters.tolist()[:2] == [3, 1]


@pytest.mark.parametrize(
    ("argument", "value"), [("indices", 4), ("indices", -1), ("targets", 3), ("targets", -1)]
)
def test_edge_case_03_out_of_range_writes_nothing(backend, argument, value):
    buffer = pe.epoch.ScoreBuffer(4, backend=backend)
    given = {"targets": int64([0, 1, 2]), "indices": int64([1, 2, 3])}
    given[argument][1] = value
    with pytest.raises(IndexError, match=rf"{argument}.*{value}"):
        buffer.cross_entropy_observe(torch.zeros(3, 3), **given)
    assert not buffer.records.any() and not buffer.counters[:3].any()


def test_edge_case_04_the_larger_score_of_a_batch_stays(backend):
    buffer = pe.epoch.ScoreBuffer(1, backend=backend)
    logits, zeros = float32([[4.0, 0.0], [0.0, 4.0], [1.0, 0.0]]), int64([0, 0, 0])
    score = buffer.cross_entropy_observe(logits, zeros, zeros)[2]
    assert_bitwise(buffer.scores, score[1:2], "the largest")


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("logits", torch.zeros(3), ValueError),
        ("logits", torch.zeros(3, 0), ValueError),
        ("logits", torch.zeros(3, 2, dtype=torch.int64), TypeError),
        ("logits", [[0.0]], TypeError),
        ("logits", torch.zeros(3, 2, device="meta"), ValueError),
        ("targets", torch.zeros(3, 2), ValueError),
        ("targets", torch.zeros(3), TypeError),
        ("targets", int64([0, 1]), ValueError),
        ("indices", torch.zeros(3), TypeError),
        ("indices", int64([0]), ValueError),
        ("class_weight", torch.ones(3), ValueError),
        ("class_weight", int64([1, 1]), TypeError),
        ("label_smoothing", 1.5, ValueError),
        ("label_smoothing", -0.1, ValueError),
        ("score", "loss2", ValueError),
    ],
)
def test_edge_case_07_wrong_argument_is_named_and_nothing_is_written(
    backend, argument, value, error
):
    buffer = pe.epoch.ScoreBuffer(4, backend=backend)
    given = {"logits": torch.zeros(3, 2), "targets": int64([0, 1, 0]), "indices": int64([0, 1, 2])}
    with pytest.raises(error, match=rf"\b{argument}\b"):
        buffer.cross_entropy_observe(**(given | {argument: value}))
    assert not buffer.records.any()


def test_edge_case_07_views_are_converted(backend):
    one, other = (pe.epoch.ScoreBuffer(40, backend=backend) for _ in range(2))
    case = Case(8, 6, 3)
    wide = torch.stack([case.logits, case.logits * 0], dim=2)[:, :, 0].requires_grad_()
    got = one.cross_entropy_observe(wide, case.targets.int(), case.indices.int())[0]
    got.sum().backward()
    plain = case.logits.clone().requires_grad_()
    want = other.cross_entropy_observe(plain, case.targets, case.indices)[0]
    want.sum().backward()
    assert_bitwise(got, want, "rescaled")
    assert_bitwise(wide.grad, plain.grad, "gradient")
    assert_bitwise(one.records, other.records, "records")


def test_the_public_function_is_the_buffers_method(backend):
    buffer, case = pe.epoch.ScoreBuffer(40, backend=backend), Case(8, 6, 3)
    names = ("records", "score_sum", "counters", "step", "weight_class", "weight_table")
    state = {name: getattr(buffer, name).clone() for name in names}
    want = buffer.cross_entropy_observe(case.logits, case.targets, case.indices, score="margin")
    before = state["records"]._version
    got = pe.ops.cross_entropy_observe(
        case.logits, case.targets, case.indices, score="margin", epoch=0, backend=backend, **state
    )
    for label, a, b in zip(("rescaled", "batch_weights", "score"), got, want, strict=True):
        assert_bitwise(a, b, label)
    assert_bitwise(state["records"], buffer.records, "records")
    assert state["records"]._version > before, "autograd is told of the change"
    with pytest.raises(ValueError, match="epoch"):
        pe.ops.cross_entropy_observe(
            case.logits, case.targets, case.indices, epoch=-1, backend=backend, **state
        )


def test_one_thread_or_many_give_the_same_bits(num_threads):
    case, found = Case(64, 2000, 5), []
    for count in (1, 2, 4):
        with num_threads(count):
            found.append(case.run(backends.load("cpu"), 4, (None, 0.1, -100)))
    for other in found[1:]:
        for name, value in found[0].items():
            assert_bitwise(other[name], value, name)


def test_gradcheck(backend):
    case = Case(5, 4, 1, dtype=torch.float64)
    buffer = pe.epoch.ScoreBuffer(40, backend=backend)
    buffer.activate(case.fixed[0], case.fixed[1], 3)
    weight = float32([1.0, 0.5, 2.0, 0.0])

    def loss(logits, smoothing):
        return buffer.cross_entropy_observe(
            logits, case.targets, case.indices, label_smoothing=smoothing, class_weight=weight
        )[0]

    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    with torch.random.fork_rng():
        for smoothing in (0.0, 0.1):
            assert torch.autograd.gradcheck(lambda x, s=smoothing: loss(x, s), (logits,))
        with pytest.raises(RuntimeError, match="Jacobian"):  # control
            torch.autograd.gradcheck(lambda x: loss(x, 0.0) * 0 + loss(x, 0.1).detach(), (logits,))


def operator_arguments(dtype, weight=None):
    case = Case(6, 5, 2, dtype=dtype, ignored=False)
    state = [tensor.clone() for tensor in case.start]
    return (
        case.logits,
        case.targets,
        case.indices,
        weight,
        0.1,
        -100,
        1,
        [*state, *case.fixed],
        True,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", [None, torch.ones(5)], ids=["plain", "weighted"])
def test_opcheck(dtype, weight):
    arguments = operator_arguments(dtype, weight)
    torch.library.opcheck(native.cross_entropy_observe, arguments)


def test_the_operator_itself_refuses_a_backward_pass():
    logits, *rest = operator_arguments(torch.float32)
    rescaled = native.cross_entropy_observe(logits.requires_grad_(), *rest)[0]
    with pytest.raises((UserWarning, RuntimeError), match=r"autograd|grad_fn"):
        rescaled.sum().backward()


# Inductor's own imports use a name that torch itself deprecates, and dynamo makes what it warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "compiler",
    ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.full("inductor compiles"))],
)
def test_a_compiled_step_has_the_records_and_gradient_of_eager(compiler):
    torch._dynamo.reset()
    case, results = Case(32, 10, 4, num_samples=256, ignored=False), []
    for compiled in (False, True):
        engine = infobatch(256)

        def step(x, engine=engine):
            return engine.cross_entropy_observe(
                x * 1.0, case.targets, case.indices, score="el2n", label_smoothing=0.1
            )

        run = torch.compile(step, fullgraph=True, backend=compiler) if compiled else step
        for _ in range(2):
            logits = case.logits.clone().requires_grad_()
            loss = run(logits)
            loss.backward()
        results.append((engine.buffer.records, engine.buffer.counters, logits.grad, loss.detach()))
    torch._dynamo.reset()
    for label, want, got in zip(
        ("records", "counters", "gradient"), *(row[:3] for row in results), strict=True
    ):
        assert_bitwise(got, want, label)
