# SPDX-License-Identifier: Apache-2.0
"""torchdata's StatefulDataLoader: exact, with workers and snapshots, in either order of loading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from _ranks_of import on_ranks
from _real import Digits, Net, credited, equals_alone, figures, flat, plain_run, weights

import prune_engine as pe
from prune_engine.integrations.torchdata import loader

N, SIZE, EPOCHS = 203, 8, 3
INFOBATCH = pe.InfoBatch(0.5, delta=0.875)


class Run:
    """The plain loop over a StatefulDataLoader."""

    def __init__(
        self, *, accumulate: int = 1, size: int = SIZE, double: bool = False, **options: Any
    ):
        self.net, self.dataset = Net(double=double), Digits(N)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.engine = pe.PruneEngine(self.dataset, INFOBATCH, num_epochs=EPOCHS)
        self.loader = loader(self.engine, self.dataset, size, accumulate=accumulate, **options)
        self.model, self.accumulate = self.net, accumulate
        self.states: dict[int, Any] = {}

    def train(self, save_at: Any = ()) -> None:
        step = 0
        for _ in self.engine.epochs():
            for x, y, indices in self.loader:
                losses = F.cross_entropy(self.model(x), y, reduction="none")
                (self.engine.observe(losses, indices) / self.accumulate).backward()
                step += 1
                if step % self.accumulate == 0:
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if step % 10 == 0:
                    self.evaluate()
                if step in save_at:
                    self.states[step] = self.state()

    def evaluate(self) -> None:
        with torch.no_grad():
            self.net.eval()
            self.net(Digits(40, first=500).x)
            self.net.train()

    def state(self) -> dict[str, Any]:
        model = {name: value.clone() for name, value in self.net.state_dict().items()}
        return {
            "model": model,
            "engine": self.engine.state_dict(),
            "loader": self.loader.state_dict(),
        }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_is_the_plain_loop(workers, accumulate):
    run = Run(accumulate=accumulate, num_workers=workers)
    with credited() as seen:
        run.train()
    want, net = plain_run(Digits(N), INFOBATCH, accumulate=accumulate)
    assert run.net.trained == seen == net.trained
    assert figures(run.engine) == figures(want)
    assert torch.equal(weights(run.net), weights(net))
    if not workers:
        assert len(run.dataset.fetched) == len(flat(seen)) < 0.9 * EPOCHS * N


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("snapshot", [1, 4])
@pytest.mark.parametrize("first", ["engine", "loader"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(workers, snapshot, first):
    options = {"num_workers": workers, "snapshot_every_n_steps": snapshot}
    run = Run(**options)
    stops = {"inside": 31, "epoch's end": N // SIZE, "evaluation": 30}
    run.train(stops.values())
    for at in stops.values():
        resumed, saved = Run(**options), run.states[at]
        order = ["engine", "loader"] if first == "engine" else ["loader", "engine"]
        for part in order:
            getattr(resumed, part).load_state_dict(saved[part])
        resumed.net.load_state_dict(saved["model"])
        resumed.train()
        assert resumed.net.trained == run.net.trained[at:], at
        assert figures(resumed.engine) == figures(run.engine)
        assert torch.equal(weights(resumed.net), weights(run.net))


def test_the_schedule_ends_where_it_should():
    run, rates = Run(), []
    steps = EPOCHS * (N // SIZE)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, steps)
    scheduler = run.engine.wrap_scheduler(cosine, steps)
    for _ in run.engine.epochs():
        assert len(run.loader) == run.engine.plan.num_kept // SIZE, "a bar of this length is honest"
        for x, y, indices in run.loader:
            run.engine.observe(F.cross_entropy(run.net(x), y, reduction="none"), indices).backward()
            run.optimizer.step()
            scheduler.step()
            rates.append(scheduler.get_last_lr()[0])
    assert len(rates) < steps
    assert rates[-1] < 1e-9


def test_a_loop_that_is_left_early_is_reported():
    run = Run()
    for count, (x, _, indices) in enumerate(run.loader):
        run.engine.observe(x[:, 0], indices)
        if count == 4:
            break
    assert run.engine.end_epoch(partial=True).observed == 5 * SIZE


@pytest.mark.parametrize("name", ["shuffle", "sampler", "batch_sampler"])
def test_another_order_is_refused(name):
    with pytest.raises(TypeError, match=f"{name} must not be given"):
        Run(**{name: True})


def ranks_work(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo")
    run = Run(accumulate=4, size=4, double=True)
    run.model = torch.nn.parallel.DistributedDataParallel(run.net)
    with credited() as seen:
        run.train([32])
    assert run.net.trained == seen
    for report in run.engine.history:
        assert (report.observed, report.missing) == (report.served, report.dropped_tail)
        assert (report.extra, report.repeated, report.served % 32) == (0, 0, 0)
    resumed = Run(accumulate=4, size=4, double=True)
    resumed.net.load_state_dict(run.states[32]["model"])
    resumed.engine.load_state_dict(run.states[32]["engine"])
    resumed.loader.load_state_dict(run.states[32]["loader"])
    resumed.model = torch.nn.parallel.DistributedDataParallel(resumed.net)
    resumed.train()
    assert resumed.net.trained == run.net.trained[32:]
    trained = [None] * size
    dist.all_gather_object(trained, run.net.trained)
    torch.save([figures(run.engine), trained], f"{folder}/{rank}")


def test_two_ranks(tmp_path):
    on_ranks(ranks_work, 2, str(tmp_path))
    alone = plain_run(Digits(N), INFOBATCH, accumulate=4, double=True)
    equals_alone(torch.load(tmp_path / "0"), *alone)
