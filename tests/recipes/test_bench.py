# SPDX-License-Identifier: Apache-2.0
"""The benchmarks measure what they say: baselines do the whole job, statistics are right."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from _assertions import assert_bitwise
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "agreement",
    "harness",
    "published",
    "torch_planner",
    "data",
    "tables",
    "targets",
    "compare",
)


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")
        patch.syspath_prepend(str(ROOT / "bench"))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


def make_section(wall: dict[str, list[int | None]], **changes: Any) -> dict[str, Any]:
    """A section whose rows are 1-thread calls of 16,000 bytes with cp = wall."""
    rows = [
        {"name": name, "threads": 1, "inner": 1, "bytes": 16_000, "wall_ns": ns, "cp_ns": ns}
        for name, ns in wall.items()
    ]
    section = {
        "table": "observe", "n": 1000, "items": 256, "unit": "us", "versus": "old",
        "relative_to": "floor", "facts": {"batch": 256}, "flush_mib": 192, "load": [0.1, 0.2],
        "rows": rows,
    }  # fmt: skip
    return section | changes


def make_run(*sections: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": 1, "command": "python bench/compare.py run", "started": "today", "seconds": 1.0,
        "environment": {"cpu": "a CPU"}, "sections": list(sections), "memory": [],
    }  # fmt: skip


def test_agreement_is_counted_over_the_batches_that_the_exact_way_drops(
    bench: SimpleNamespace,
) -> None:
    steps = torch.tensor([[1.0] * 10, [1.0] * 10, range(1, 11)]).double().cumsum(0)
    ways = {"hooks": steps, "same": steps * (1 + 1e-12), "opposite": steps.flip(1)}
    found = bench.agreement.compare_ways(ways, share=0.3)
    assert found["hooks"] == {"relative_error": 0, "error_of_change": 0, "same_drops": 1}
    assert found["same"]["same_drops"] == 1
    assert 0 < found["same"]["relative_error"] < 1e-11
    assert found["opposite"]["same_drops"] == 0
    assert bench.agreement.mean_over_seeds([found, found]) == found


# --- the baselines ---------------------------------------------------------------------------


@given(st.integers(1, 500), st.sampled_from([0.0, 0.25, 0.5, 0.9]), st.integers(0, 99))
def test_published_planner_keeps_all_others_and_floor_of_the_low(
    bench: SimpleNamespace, n: int, prune_ratio: float, seed: int
) -> None:
    scores = torch.from_numpy(bench.data.synthetic_scores(n, seed))
    planner = bench.published.Published(scores, prune_ratio, np.random.RandomState(seed))
    order = [int(i) for i in planner.plan()]
    low = set(torch.nonzero(scores < scores.mean()).flatten().tolist())
    kept_low = [i for i in order if i in low]
    assert sorted(set(order)) == sorted(order)
    assert set(order) - low == set(range(n)) - low
    assert len(kept_low) == int((1.0 - prune_ratio) * len(low))
    expected = torch.ones(n)
    expected[kept_low] = 1 / (1.0 - prune_ratio)
    assert_bitwise(planner.weights, expected, "weights")


def test_published_planner_follows_its_random_state(bench: SimpleNamespace) -> None:
    scores = torch.from_numpy(bench.data.synthetic_scores(1000))
    first, again, other = (
        bench.published.Published(scores, 0.5, np.random.RandomState(seed)).plan()
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_published_update_records_scales_in_place_and_averages(bench: SimpleNamespace) -> None:
    store = bench.published.Published(torch.zeros(5), 0.5, np.random.RandomState(0))
    store.weights[3] = 2.0
    losses = torch.tensor([1.0, 3.0])
    mean = store.update(losses, torch.tensor([3, 0]))
    assert_bitwise(store.scores, torch.tensor([3.0, 0.0, 0.0, 1.0, 0.0]), "scores")
    assert_bitwise(losses, torch.tensor([2.0, 3.0]), "losses")
    assert mean.item() == 2.5


def test_published_sampler_serves_its_order_once(bench: SimpleNamespace) -> None:
    sampler = bench.published.Sampler([4, 2, 0, 3, 1])
    assert list(BatchSampler(sampler, 2, drop_last=False)) == [[4, 2], [0, 3], [1]]


def test_torch_planner_does_the_same_job(bench: SimpleNamespace) -> None:
    scores = torch.from_numpy(bench.data.synthetic_scores(3001))
    order, weights = bench.torch_planner.plan(scores, 0.5, torch.Generator().manual_seed(0))
    low = scores < scores.mean()
    assert len(order.unique()) == len(order)
    assert int((~low[order]).sum()) == int((~low).sum())
    assert int(low[order].sum()) == int(0.5 * int(low.sum()))
    assert int((weights == 2.0).sum()) == int(low[order].sum())


def test_our_rows_plan_the_same_data(bench: SimpleNamespace) -> None:
    scores = torch.from_numpy(bench.data.synthetic_scores(20_000))
    low = scores.double() < scores.double().mean()
    weight_class, kept = bench.data.PruneState(scores).plan(epoch=1, fixed=True)
    assert 0.69 < float(low.float().mean()) < 0.71
    assert int((weight_class == 1).sum()) == int((~low).sum())
    assert int((weight_class == 2).sum()) == int(low.sum()) // 2
    assert_bitwise(kept, weight_class.nonzero().flatten().int(), "kept")


# --- the harness -----------------------------------------------------------------------------


def test_spread_is_the_percentiles_of_what_is_there(bench: SimpleNamespace) -> None:
    values = [5.0, None, 1.0, 4.0, 2.0, 3.0, None]
    assert bench.harness.spread(values) == bench.harness.Spread(1.8, 3.0, 4.2, 5)
    assert bench.harness.spread([None]) is None


def test_ratio_pairs_rounds_before_it_takes_the_median(bench: SimpleNamespace) -> None:
    slow, fast = [10, 200, 30, None], [1, 10, 30, 7]
    assert bench.harness.paired_ratio(slow, fast).median == 10.0
    # Negative control: the ratio of medians is another number.
    assert np.median([10, 200, 30]) / np.median([1, 10, 30]) != 10.0


def test_critical_path_is_the_busiest_side(bench: SimpleNamespace) -> None:
    path = bench.harness.critical_path_ns
    assert path(10, {2: 5}, {2: 25}) == 20
    assert path(30, {}, {2: 25, 3: 4}) == 30


def test_critical_path_does_not_count_waiting(bench: SimpleNamespace) -> None:
    if bench.harness.other_threads_cpu_ns() is None:
        assert bench.harness.time_once(lambda _d, _a: None, None, None)[1] is None
        return

    def spin(_data: object, _argument: object) -> None:
        end = time.thread_time_ns() + 20_000_000
        while time.thread_time_ns() < end:
            pass

    wall, cp = bench.harness.time_once(lambda _d, _a: time.sleep(0.05), None, None)
    assert wall >= 50_000_000 and cp < 25_000_000
    assert bench.harness.time_once(spin, None, None)[1] >= 20_000_000


def interleaved(bench: SimpleNamespace, seed: int) -> tuple[list[str], list[Any]]:
    calls: list[str] = []
    make = bench.harness.Alternative
    alternatives = [
        make("a", lambda d, _: d.append("a")),
        make("b", lambda d, _: d.append("b"), threads=2, every=3),
        make("c", lambda d, argument: d.append(f"c{argument}"), lambda _d, number: number),
    ]
    rows = bench.harness.interleave(
        alternatives, calls, rounds=6, flush=lambda: calls.append("flush"), seed=seed
    )
    return calls, rows


def test_every_round_calls_each_alternative_once_after_a_flush(bench: SimpleNamespace) -> None:
    threads = torch.get_num_threads()
    calls, rows = interleaved(bench, seed=0)
    assert calls[:3] == ["a", "b", "c0"]
    assert calls[3::2] == ["flush"] * 14
    assert sorted(calls[4::2]) == sorted(["a"] * 6 + ["b"] * 2 + [f"c{i}" for i in range(1, 7)])
    assert [i for i, ns in enumerate(rows[1].wall_ns) if ns is not None] == [0, 3]
    assert all(len(row.wall_ns) == len(row.cp_ns) == 6 for row in rows)
    assert torch.get_num_threads() == threads


@pytest.mark.full("times a table twice")
def test_order_in_a_round_is_random_and_repeatable(bench: SimpleNamespace) -> None:
    orders = [interleaved(bench, seed)[0] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_rows_must_be_distinct(bench: SimpleNamespace) -> None:
    twice = [bench.harness.Alternative("a", lambda _d, _a: None)] * 2
    with pytest.raises(ValueError, match="distinct"):
        bench.harness.interleave(twice, None, rounds=1, flush=lambda: None)


# --- tables, targets, differences ------------------------------------------------------------


def test_table_holds_medians_ratios_and_shares(bench: SimpleNamespace) -> None:
    ours: list[int | None] = [1000, 2000, 3000]
    section = make_section(
        {"new": ours, "old": [20_000, None, 30_000], "floor": [500, 500, 1000],
         bench.harness.READ_LIMIT: [500, 1000, 1500]}
    )  # fmt: skip
    line = next(x for x in bench.tables.section_table(section).splitlines() if "| new" in x)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "new", "1", "3", "2.00", "1.40 - 2.60", "2.00", "7.81", "15.0x", "15.0x", "3.00x", "8",
        "50%",
    ]  # fmt: skip
    # Negative control: another baseline gives another table.
    section["rows"][1]["wall_ns"] = [40_000, None, 60_000]
    assert line not in bench.tables.section_table(section)


def test_targets_are_met_missed_or_absent(bench: SimpleNamespace) -> None:
    name = "engine.observe(losses, indices)"
    plain = "losses.mean() (no pruning)"

    def made(cold: int, warm: int) -> dict[str, Any]:
        steps = make_section({name: [warm], plain: [4_000]}) | {"table": "observe_warm"}
        return make_run(make_section({name: [cold], "published update": [30_000]}), steps)

    assert bench.targets.judge(made(15_000, 10_000))[1]
    for times in ((15_001, 10_000), (15_000, 10_001)):
        text, met = bench.targets.judge(made(*times))
        assert not met and text.count("MISSED") == 1
    assert not bench.targets.judge(make_run())[1]  # Nothing judged is not a success.


def test_memory_target_counts_bytes(bench: SimpleNamespace) -> None:
    run = make_run()
    peak = {"kind": "pe plan", "n": 10**6, "num_kept": 0, "bound_bytes": 9 * 10**6, "method": "m"}
    run["memory"] = [peak | {"peak_bytes": 9 * 10**6}]
    assert bench.targets.judge(run)[1]
    run["memory"] = [peak | {"peak_bytes": 10**7}]
    assert not bench.targets.judge(run)[1]


def test_difference_tells_a_change_from_noise(bench: SimpleNamespace) -> None:
    old = make_run(make_section({"a": [100, 110, 120], "b": [100, 110, 120], "c": [100, 110, 120]}))
    new = make_run(make_section({"a": [90, 105, 125], "b": [50, 55, 60], "c": [200, 220, 240]}))
    verdicts = [
        line.rsplit("|", 2)[1].strip() for line in bench.tables.difference(old, new).splitlines()
    ]
    assert verdicts[2:] == ["noise", "faster", "slower"]


def test_json_survives_the_file(bench: SimpleNamespace, tmp_path: Path) -> None:
    run = make_run(make_section({"a": [1, None, 3]}))
    text = bench.compare.to_json(run)
    assert "[1, null, 3]" in text
    (tmp_path / "run.json").write_text(text)
    assert bench.compare.load(tmp_path / "run.json") == run
    (tmp_path / "run.json").write_text(json.dumps(run | {"format": 99}))
    with pytest.raises(ValueError, match="format"):
        bench.compare.load(tmp_path / "run.json")


def test_insert_needs_both_markers(bench: SimpleNamespace) -> None:
    begin, end = bench.compare.BEGIN, bench.compare.END
    assert (
        bench.compare.insert(f"a\n{begin}\nold\n{end}\nz", "new\n") == f"a\n{begin}\nnew\n{end}\nz"
    )
    with pytest.raises(ValueError, match="expected"):
        bench.compare.insert(f"{end} {begin}", "new")


@pytest.mark.full("times every table")
def test_run_writes_a_file_that_becomes_tables(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    asked = ["--samples", "3000", "--rounds", "1", "--flush-mib", "0"]
    timed = ["--tables", "plan", "order", "observe", "sampler", "select", "pick"]
    timed.append("observe_warm")
    assert bench.compare.main(["run", "--out", str(out), *asked, *timed]) == 0
    assert bench.compare.main(["table", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "published planner" in printed and "engine.sampler()" in printed
    sections = bench.compare.load(out)["sections"]
    assert [s["table"] for s in sections] == [
        "plan",
        "order",
        "observe",
        "observe",
        "sampler",
        "select",
        "pick",
        "observe_warm",
    ]
    assert all(len(r["wall_ns"]) == 1 for s in sections for r in s["rows"])


def test_readme_shows_the_stored_run(bench: SimpleNamespace) -> None:
    page = (ROOT / "bench" / "results" / "cpu.md").read_text()
    text = bench.tables.document(bench.compare.load(ROOT / "bench" / "results" / "cpu.json"))
    assert bench.compare.insert(page, text) == page
    page = (ROOT / "bench" / "results" / "step.md").read_text()
    text = bench.tables.document(bench.compare.load(ROOT / "bench" / "results" / "step.json"))
    assert bench.compare.insert(page, text) == page
    page = (ROOT / "bench" / "results" / "logits.md").read_text()
    text = bench.tables.document(bench.compare.load(ROOT / "bench" / "results" / "logits.json"))
    assert bench.compare.insert(page, text, "logits") == page


def test_both_sides_of_the_logits_table_do_the_same_job(bench: SimpleNamespace) -> None:
    module = importlib.import_module("bench_cross_entropy_observe")
    found = []
    for name in (module.OURS, module.VERSUS, "gradient in the forward pass (not taken)"):
        data = module.LogitData(50, 6, 11, "float32")
        module.MEASURED[name].call(data, module._indices(data, 1))
        found.append((data.logits.grad, data.engine.scores()))
    for gradient, scores in found[1:]:
        torch.testing.assert_close(gradient, found[0][0])
        torch.testing.assert_close(scores, found[0][1], equal_nan=True)
    assert found[0][0].abs().sum() > 0
