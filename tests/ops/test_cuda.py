# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a GPU: same bits as the CPU. Asked for by ``-m cuda``, they fail without one.

``SANITIZE=1`` keeps the sizes small, for compute-sanitizer (``make sanitize``).
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator

import oracle
import pytest
import torch
from _assertions import assert_bitwise
from _cases import (
    AWKWARD,
    EVERY_WEIGHT,
    NON_FINITE,
    counters,
    float32,
    floats,
    int64,
    records,
    table,
    uint8,
)

import prune_engine as pe
from prune_engine import backends

# torch warns that its search for synchronisation is a prototype, and its profiler of itself.
pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::UserWarning")]

SANITIZE = os.environ.get("SANITIZE") == "1"
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SIZES = [0, 1, 31, 32, 33, 257, 4095, 4096, 4097, 9001]
LARGE = [] if SANITIZE else [1_281_167, 2**24 + 5]
SEEDS = [0, 2**63 - 1, 123456789012345]
WEIGHTS = table(*EVERY_WEIGHT)
RULES = {
    "keep": ([], [0], [1], [1], 0, -1),
    "mean": ([0.7], [32768, 0], [2, 1], [1, 1], 0, -1),
    "six": ([-1.0, 0.0, 0.5, 1.0, 2.0], [9, 65535, 1, 30000, 0, 77], [3, 2, 1, 4, 5, 7], [0], 0, 4),
    "own": ([0.7, math.inf], [32768, 0, 16384], [2, 1, 3], [1], 0, 2),  # for the never seen
    "fixed": ([0.7], [0, 0], [2, 1], [1, 2], 2, -1),
    "fixed own": ([0.7, math.inf], [0], [2, 1, 3], [2, 4, 3], 4, 2),
    "fixed six": (
        [-1.0, 0.0, 0.5, 1.0, 2.0],
        [0],
        [3, 2, 1, 4, 5, 7],
        [0, 1, 2, 3, 999, 1000],
        1000,
        0,
    ),
}


@pytest.fixture(autouse=True)
def device() -> torch.device:
    """Fail where a GPU was asked for and none can serve."""
    try:
        backends.load("cuda")
    except RuntimeError as error:
        pytest.fail(f"these tests need a GPU: {error}")
    return torch.device("cuda")


@pytest.fixture
def no_sync() -> Iterator[None]:
    """Make every wait for the device an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def random_records(count: int, seed: int, epoch: int) -> torch.Tensor:
    """Return records of this epoch and the one before, one in ten unseen, made quickly."""
    if count <= 10_000:
        return int64(records(random.Random(seed), count, epoch, unseen=0.1))
    generator = torch.Generator().manual_seed(seed % 2**32)
    scores = torch.randn(count, generator=generator) * 2
    bits = scores.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    keys = torch.where(bits >= 1 << 31, 0xFFFFFFFF - bits, bits | 1 << 31)
    past = torch.randint(max(epoch, 1), epoch + 2, (count,), generator=generator)
    return ((past << 32) | keys) * (torch.rand(count, generator=generator) > 0.1)


def fitted(rule: tuple) -> tuple:
    """Fill a rule's short columns up to one entry per band."""
    thresholds, cuts, classes, keep_num, den, unseen = rule
    bands = len(thresholds) + 1
    columns = [(column * bands)[:bands] for column in (cuts, classes, keep_num)]
    return float32(thresholds), *columns, den, unseen


def same(labels: list[str], got: list, want: list) -> None:
    for label, a, b in zip(labels, got, want, strict=True):
        assert_bitwise(a, b, label)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize("batch_size", [0, 1, 31, 257, 5000] + [700_001] * (not SANITIZE))
def test_observe(device, dtype, index_dtype, batch_size):
    rng = random.Random(batch_size)
    generator = torch.Generator().manual_seed(batch_size)
    for span, score_dtype in ((9001, None), (5, None), (3000, torch.float64), (300, torch.float16)):
        epoch = rng.choice([0, 7, 2**31 - 2])
        old = records(rng, 9001, epoch, unseen=0.4)
        indices = torch.randint(span, (batch_size,), generator=generator).to(index_dtype)
        pool = torch.tensor(floats(rng, 997, finite=False) + AWKWARD + NON_FINITE)
        losses, scores = (
            pool[torch.randint(len(pool), (batch_size,), generator=generator)] for _ in range(2)
        )
        batch = (losses.to(dtype), indices, None if score_dtype is None else scores.to(score_dtype))
        state = [int64(old), int64(oracle.sum_of_records(old)), counters(), int64([3])]
        fixed = [uint8([rng.randrange(256) for _ in range(9001)]), WEIGHTS, int64([epoch])]
        want_state = [t.clone() for t in state]
        got_state = [t.to(device) for t in state]
        want = backends.load("cpu").observe(*batch, [*want_state, *fixed], True)
        got = backends.load("cuda").observe(
            *(t if t is None else t.to(device) for t in batch),
            [*got_state, *(t.to(device) for t in fixed)],
            True,
        )
        labels = ["rescaled", "batch_weights", "records", "score_sum", "counters", "step"]
        same(labels, [*got, *got_state], [*want, *want_state])


@pytest.mark.parametrize("bad", [-1, 8, 2**31 - 1, -(2**31), 2**40, -(2**63)])
def test_observe_edge_case_03_out_of_range_is_counted(device, bad):
    buffer = pe.epoch.ScoreBuffer(8, device=device)
    losses = torch.tensor([1.0, 2.0, 3.0], device=device)
    rescaled, weights = buffer.observe(losses, torch.tensor([0, bad, 5], device=device))
    assert_bitwise(rescaled, losses, "rescaled")
    assert_bitwise(weights, [1.0, 1.0, 1.0], "batch_weights")
    assert_bitwise(buffer.counters, [2, 0, 1, bad, 0], "counters")
    assert_bitwise(buffer.scores.isnan(), [False, *[True] * 4, False, True, True], "unseen")


def test_an_index_out_of_range_raises_at_the_end_of_the_epoch(device):
    engine = pe.PruneEngine(8, pe.KeepAll(), num_epochs=2, device=device)
    engine.observe(torch.ones(9, device=device), torch.arange(9, device=device))
    with pytest.raises(IndexError, match="8"):
        engine.end_epoch()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", SIZES + LARGE)
def test_plan_compact_order_and_audit(device, count, name):
    cpu, cuda = backends.load("cpu"), backends.load("cuda")
    thresholds, *numbers = fitted(RULES[name])
    for seed, epoch in zip(SEEDS, (0, 3, 2**31 - 2), strict=True):
        scored = random_records(count, seed, epoch)
        want, got = torch.empty(count, dtype=torch.uint8), torch.empty(count, dtype=torch.uint8)
        moved, got = scored.to(device), got.to(device)
        want_offsets = cpu.plan(scored, thresholds, *numbers, seed, epoch, want)
        got_offsets = cuda.plan(moved, thresholds.to(device), *numbers, seed, epoch, got)
        same(["weight_class", "block_offsets"], [got, got_offsets], [want, want_offsets])
        num_kept = int(want_offsets[-1])
        want_kept = cpu.compact(want, want_offsets, num_kept)
        got_kept = cuda.compact(got, got_offsets, num_kept)
        audits = [cuda.audit(moved, got, epoch), cpu.audit(scored, want, epoch)]
        means = [cuda.mean_threshold(audits[0][:10]), cpu.mean_threshold(audits[1][:10])]
        same(
            ["kept", "audit", "mean"],
            [got_kept, audits[0], means[0]],
            [want_kept, *audits[1:], means[1]],
        )
        if num_kept:
            span = (0, 1, num_kept, seed, epoch)
            got_order = cuda.order(got_kept, None, *span)
            assert_bitwise(got_order, cpu.order(want_kept, None, *span), "order")
            last = (num_kept - 1, 3 * num_kept + 1, 1, seed, epoch)  # a far rank's only position
            assert_bitwise(cuda.order(got_kept, None, *last), got_order[-1:], "order of the last")
            some = torch.arange(num_kept)[:: max(1, num_kept // 999)].flip(0).contiguous()
            got_some = cuda.order(got_kept, some.to(device), 0, 1, 0, seed, epoch)
            assert_bitwise(got_some, got_order[some.to(device)], "order of given positions")


@pytest.mark.parametrize("count", SIZES + LARGE)
def test_select_and_top(device, count):
    cpu, cuda = backends.load("cpu"), backends.load("cuda")
    scored = random_records(count, 7, 3)
    ranks = ([0, 0, 0, 3, -1], [200, 850, 1, 0, 1000], 1000)
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count))
    for values in (scored, scores, scores.round(), scores[1:], torch.ones(count)):
        moved = values.to(device)
        assert_bitwise(cuda.select(moved, *ranks), cpu.select(values, *ranks), "select")
        for k in (0, 1, count // 3, count):
            assert_bitwise(cuda.top(moved, k), cpu.top(values, k), "top")


@pytest.mark.parametrize("span", [(-1, 1, 1), (0, 1, 6), (4, -1, 6), (5, 1, 1), (0, 2**62, 3)])
def test_order_refuses_a_range_that_leaves_the_list(device, span):
    kept = torch.arange(5, dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError, match=r"positions must be in 0\.\.4"):
        backends.load("cuda").order(kept, None, *span, 0, 0)
    outside = torch.tensor([-1, 5, 2**62], device=device)
    samples = backends.load("cuda").order(kept, outside, 0, 1, 0, 0, 0)
    assert_bitwise(samples, [-(2**31)] * 3, "positions that do not exist")


def test_views_that_are_not_aligned(device):
    cpu, cuda = backends.load("cpu"), backends.load("cuda")
    scored = random_records(9002, 5, 3)
    thresholds, *numbers = fitted(RULES["mean"])
    want = torch.empty(9001, dtype=torch.uint8)
    want_offsets = cpu.plan(scored[1:], thresholds, *numbers, 5, 4, want)
    moved, room = scored.to(device), torch.empty(9002, dtype=torch.uint8, device=device)
    got_offsets = cuda.plan(moved[1:], thresholds.to(device), *numbers, 5, 4, room[1:])
    same(["weight_class", "block_offsets"], [room[1:], got_offsets], [want, want_offsets])
    num_kept = int(want_offsets[-1])
    same(
        ["kept", "audit"],
        [cuda.compact(room[1:], got_offsets, num_kept), cuda.audit(moved[1:], room[1:], 3)],
        [cpu.compact(want, want_offsets, num_kept), cpu.audit(scored[1:], want, 3)],
    )


def test_a_tensor_on_another_device_is_refused(device):
    buffer = pe.epoch.ScoreBuffer(8, device=device)
    losses, indices = torch.ones(2, device=device), torch.tensor([0, 1], device=device)
    names = ("records", "score_sum", "counters", "step", "epoch")
    state = {name: getattr(buffer, name) for name in names}
    state |= {"weight_class": buffer.weight_class, "weight_table": buffer.weight_table.cpu()}
    with pytest.raises((ValueError, TypeError), match="weight_table"):
        pe.ops.observe(losses, indices, backend="cuda", **state)
    order = (*names[:4], "weight_class", "weight_table")
    with pytest.raises(RuntimeError, match="weight_table must be on device cuda"):
        backends.load("cuda").observe(
            losses,
            indices,
            None,
            [*(state[name] for name in order), buffer.epoch],
            True,
        )


def loss_of(indices: torch.Tensor, epoch: int) -> torch.Tensor:
    """Return losses that only depend on the sample and the epoch, exact in float32."""
    return ((indices.to(torch.int64) * 7919 + epoch * 104729) % 4096).to(torch.float32) / 512


@pytest.mark.parametrize("sampling", ["bernoulli", "fixed"])
def test_a_whole_run_equals_the_cpu(device, sampling):
    outcomes = []
    for where in ("cpu", device):
        policy = pe.InfoBatch(prune_ratio=0.5, sampling=sampling)
        engine = pe.PruneEngine(5000, policy, num_epochs=6, seed=3, device=where)
        trace = []
        for epoch in engine.epochs():
            order = engine.plan.indices
            trace += [order, engine.plan.weights, engine.plan.threshold]
            for batch in order.split(256):
                trace.append(engine.observe(loss_of(batch, epoch), batch, reduction="none"))
            trace.append(engine.buffer.score_sum.clone())
        outcomes.append([*trace, engine.buffer.records, engine.scores()])
    assert len(outcomes[0]) == len(outcomes[1])
    for number, (want, got) in enumerate(zip(*outcomes, strict=True)):
        assert_bitwise(got, want, f"step {number} of the trace")
    assert any(len(order) < 5000 for order in outcomes[0][::1] if order.dtype == torch.int32)


def test_no_step_waits_for_the_device(device, no_sync):
    torch.cuda.set_sync_debug_mode("default")
    engine = pe.PruneEngine(4096, pe.InfoBatch(prune_ratio=0.5), num_epochs=3, device=device)
    model = torch.nn.Linear(16, 4, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator(device=device).manual_seed(0)
    inputs = torch.randn(4096, 16, device=device, generator=generator)
    targets = torch.randint(4, (4096,), device=device, generator=generator)
    for _ in engine.epochs():
        batches = engine.plan.indices.split(256)
        torch.cuda.set_sync_debug_mode("error")
        for indices in batches:
            logits = model(inputs[indices])
            losses = torch.nn.functional.cross_entropy(logits, targets[indices], reduction="none")
            optimizer.zero_grad()
            engine.observe(losses, indices).backward()
            optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
    assert engine.history[-1].num_seen == 4096


def test_a_wait_would_be_seen(device, no_sync):
    with pytest.raises(RuntimeError, match="synchron"):
        torch.ones(1, device=device).item()


def test_a_captured_graph_serves_two_epochs(device):
    buffer = pe.epoch.ScoreBuffer(1000, device=device)
    expected = pe.epoch.ScoreBuffer(1000)
    losses = torch.zeros(64, device=device)
    indices = torch.zeros(64, dtype=torch.int64, device=device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        buffer.observe(losses, indices)  # once before the capture, which must not allocate anew
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rescaled, weights = buffer.observe(losses, indices)
    for tensor in (buffer.records, buffer.score_sum, buffer.step):
        tensor.zero_()
    buffer.reset_counters()
    generator = torch.Generator().manual_seed(1)
    for epoch in range(2):
        classes = torch.randint(3, (1000,), generator=generator, dtype=torch.uint8)
        for each in (buffer, expected):
            each.activate(classes.to(each.device), WEIGHTS.to(each.device), epoch)
        for _ in range(5):
            batch = torch.randint(1000, (64,), generator=generator)
            values = torch.randn(64, generator=generator)
            losses.copy_(values)
            indices.copy_(batch)
            graph.replay()
            want = expected.observe(values, batch)
            same(["rescaled", "batch_weights"], [rescaled, weights], [*want])
    for name in ("records", "score_sum", "counters", "step"):
        assert_bitwise(getattr(buffer, name), getattr(expected, name), name)


FIRST_CALL = """
import torch
import prune_engine as pe
buffer = pe.epoch.ScoreBuffer(100, device="cuda")
losses, indices = torch.ones(8, device="cuda"), torch.arange(8, device="cuda")
logits = torch.zeros(8, 5, device="cuda", requires_grad=True)
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    {call}
graph.replay()
graph.replay()
print(buffer.step.item(), buffer.read_counters().observed)
"""


@pytest.mark.parametrize(
    "call",
    [
        "buffer.observe(losses, indices)",
        "buffer.cross_entropy_observe(logits, indices % 5, indices)[0].sum().backward()",
        "buffer.observe(losses, indices); pe.ops.moments([losses])",
    ],
    ids=["observe", "logits", "moments"],
)
def test_a_capture_may_hold_the_first_call_of_a_process(device, call):
    code = FIRST_CALL.format(call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "16"]


def test_an_engine_whose_step_was_captured_is_the_eager_run(device):
    eager, replayed = (
        pe.PruneEngine(512, pe.KeepAll(), num_epochs=3, device=device) for _ in range(2)
    )
    losses = torch.zeros(64, device=device)
    indices = torch.zeros(64, dtype=torch.int64, device=device)
    before, graph = replayed.state_dict(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = replayed.observe(losses, indices)
    replayed.load_state_dict(before)  # the capture's own call moved the cursor
    for epoch in range(3):
        for batch in eager.plan.indices.split(64):
            want = eager.observe(loss_of(batch, epoch), batch)
            losses.copy_(loss_of(batch, epoch))
            indices.copy_(batch)
            graph.replay()
            replayed.consume(64)
            assert_bitwise(loss, want, "loss")
        assert (replayed.cursor, replayed.progress) == (eager.cursor, eager.progress)
        for engine in (eager, replayed):
            engine.end_epoch()
        assert_bitwise(replayed.plan.indices, eager.plan.indices, "order")
    assert_bitwise(replayed.buffer.records, eager.buffer.records, "records")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, of itself
def test_a_compiled_step_equals_eager(device):
    if SANITIZE:
        pytest.skip("the compiler's own kernels are not under test")
    eager, compiled = (pe.epoch.ScoreBuffer(1000, device=device) for _ in range(2))
    losses = torch.rand(64, device=device, generator=torch.Generator(device).manual_seed(2))
    indices = torch.arange(64, device=device) * 7

    def step(losses, indices):
        rescaled, _ = compiled.observe(losses * 2, indices)
        return rescaled.sum()

    run = torch.compile(step, fullgraph=True, mode="reduce-overhead")
    skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    for _ in range(3):
        total = run(losses, indices).clone()
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == skipped, "no CUDA graph"
    want, _ = eager.observe(losses * 2, indices)
    assert torch.allclose(total, want.sum())
    assert_bitwise(compiled.records, eager.records, "records")


def launches(call) -> list[str]:
    """Return the names of what runs on the device while ``call`` runs."""
    call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == kind]


def test_launches_are_counted(device):
    if SANITIZE:
        pytest.skip("a profiler and a sanitizer do not run together")
    buffer = pe.epoch.ScoreBuffer(100_000, device=device)
    for batch_size in (256, 65_536):
        indices = torch.arange(batch_size, device=device)
        losses = indices.float()
        names = launches(lambda a=losses, b=indices: buffer.observe(a, b))
        assert len(names) == 1 and "observe_kernel" in names[0], names
    thresholds, *numbers = fitted(RULES["mean"])
    rule, out = (thresholds.to(device), *numbers, 1, 1), torch.empty_like(buffer.weight_class)
    cuda = backends.load("cuda")
    names = launches(lambda: cuda.plan(buffer.records, *rule, out))
    assert len(names) == 2 and all("kernel" in name for name in names), names
    offsets = cuda.plan(buffer.records, *rule, out)
    count = int(offsets[-1])
    kept = cuda.compact(out, offsets, count)
    assert len(launches(lambda: cuda.compact(out, offsets, count))) == 1
    assert len(launches(lambda: cuda.order(kept, None, 0, 1, count, 1, 1))) == 1
    assert "Memcpy" in str(launches(lambda: offsets.cpu())), "control: a copy to the host is seen"


def test_it_runs_on_the_current_stream(device):
    expected, buffer = pe.epoch.ScoreBuffer(1000), pe.epoch.ScoreBuffer(1000, device=device)
    side = torch.cuda.Stream()
    values, batch = torch.rand(500, generator=torch.Generator().manual_seed(4)), torch.arange(500)
    losses, indices = torch.full((500,), -1.0, device=device), batch.to(device)
    moved = values.to(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # a kernel on another stream would read the losses too early
        losses.copy_(moved)
        rescaled, _ = buffer.observe(losses, indices)
    side.synchronize()
    want, _ = expected.observe(values, batch)
    same(["rescaled", "records"], [rescaled, buffer.records], [want, expected.records])


def test_another_device_than_the_current_one(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    buffer, expected = pe.epoch.ScoreBuffer(100, device="cuda:1"), pe.epoch.ScoreBuffer(100)
    values, batch = torch.rand(50, generator=torch.Generator().manual_seed(4)), torch.arange(50)
    with torch.cuda.device(0):
        rescaled, _ = buffer.observe(values.to("cuda:1"), batch.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    want, _ = expected.observe(values, batch)
    same(["rescaled", "records"], [rescaled, buffer.records], [want, expected.records])
