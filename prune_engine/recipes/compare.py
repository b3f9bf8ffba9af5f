# SPDX-License-Identifier: Apache-2.0
"""The arms of a run, the order they are trained in, and the files they leave."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prune_engine.bands import check_fraction, decimal_fraction
from prune_engine.coresets import Coreset
from prune_engine.coresets.method import check_cap
from prune_engine.engine import PruneEngine
from prune_engine.epoch.per_sample import PerSample
from prune_engine.epoch.ranks import world
from prune_engine.epoch.state import check_seed
from prune_engine.plain import store_plain
from prune_engine.policies import (
    BPAS,
    RS2,
    KeepAll,
    Policy,
    RandomBatches,
    RandomSubset,
    ScoreRule,
    Subset,
)
from prune_engine.policies.batches.base import BatchPolicy
from prune_engine.recipes import environment, files, in_batch, owner, pictures, ranks
from prune_engine.recipes.arms import (
    EQUAL,
    POLICIES,
    TARGET_SAVINGS,
    Choice,
    arm_name,
    equal,
    make,
)
from prune_engine.recipes.data import ImageData, load
from prune_engine.recipes.policy_spec import FORM, is_spec, read_policy, spec_name
from prune_engine.recipes.results import (
    ACCURACY,
    ALL,
    BUDGET,
    FULL,
    FULL_CUT,
    FULL_FORWARDS,
    RANDOM,
    RANDOM_SUBSET,
    SCHEMA,
    SUBSET,
    metric_of,
)
from prune_engine.recipes.selection import alike_at_random, read_chosen
from prune_engine.recipes.text import TextData
from prune_engine.recipes.train import Arm, ArmResult, Keep, train_arm
from prune_engine.recipes.trainer import TrainConfig, warm_up

# Of a training, beside its rows.
RECORDING, PREDICTIONS, CHECKPOINT = "scores.rec", "predictions.npy", "state.pt"
OWN_FILES = ("metrics.jsonl", "losses.json", RECORDING, PREDICTIONS, CHECKPOINT)

# What no study found to be worse than a random subset for sure, at what it saves by itself. Others
# gain more in some regimes and lose more in others (policies/README.md).
DEFAULT_POLICY = "infobatch"
NAMES = (*POLICIES, "bpas", *in_batch.NAMES, ALL)  # SUBSET comes with its file

DEFAULTS: dict[str, TrainConfig] = {
    "digits": TrainConfig(model="mlp", epochs=30, batch_size=32, lr=0.05),
    "fashion_mnist": TrainConfig(model="cnn", epochs=12, batch_size=256, lr=0.2),
    "cifar10": TrainConfig(model="resnet18", epochs=30, batch_size=128, lr=0.1, augment=True),
    "cifar100": TrainConfig(model="resnet18", epochs=30, batch_size=128, lr=0.1, augment=True),
    "tinyshakespeare": TrainConfig(
        model="gpt2", epochs=8, batch_size=32, lr=3e-3, optimizer="adamw", layers="gpt2_blocks"
    ),
    "gsm8k": TrainConfig(
        model="gpt2", epochs=8, batch_size=32, lr=3e-3, optimizer="adamw", layers="gpt2_blocks"
    ),
}

LEAST_EFFECTIVE = 0.25  # share of a subset's samples that its weights should let count

# B-PAS's saving where no delta is given: the published 1e-6 to 5e-5 are for runs of 200 epochs, in
# which batches change a thousand times less than in these.
TARGET_DSI = 0.3


@dataclass(frozen=True)
class RunOptions:
    """One call of ``prune-engine train``.

    Args:
        data: a name of ``data.DATA_SETS``.
        out: the run folder.
        train: shared by all arms.
        policy: a name of ``arms.POLICIES`` or ``in_batch.NAMES``, a call such as
            ``"orderdp(keep=0.3)"`` or ``"mymodule:MyPolicy(keep=0.3)"`` (``policy_spec``), or
            ``"all"``: every policy whose saving can be set.
        prune_ratio: share of the low samples that is dropped, in [0, 1); of all, for ``ucb``,
            ``epsilon_greedy`` and the random ones.
        delta: share of the epochs before annealing, in (0, 1].
        sampling: ``"bernoulli"`` or ``"fixed"``.
        seeds: one training per arm and seed.
        compare: also train ``full``, ``full_cut`` and the random control.
        target_savings: share of the run's samples that the policy is made to save, in (0, 1); None:
            what its parameters save, and 0.4 for ``"all"``.
        data_root: the folder of the files.
        limit: first training samples only.
        delta_ranges: (delta_start, delta_end) of ``bpas``; those after the first are trained
            beside it, without controls.
        noise_floor: of ``bpas``.
        shuffle_batches: of ``bpas``.
        subset: what ``prune-engine select`` wrote, one file for all seeds or one for each: the
            policy is then ``"subset"``, and what it is compared with is also a random subset of its
            size and classes, and ``budget``.
        weight_cap: of the subset's weights, at least 1 (``Coreset.normalised``); 1: without them.
        record: keep scores and kept bits of the arms under test, sample by sample.
    """

    data: str
    out: Path
    train: TrainConfig
    policy: str = DEFAULT_POLICY
    prune_ratio: float = 0.5
    delta: float = 0.875
    sampling: str = "bernoulli"
    seeds: tuple[int, ...] = (0,)
    compare: bool = False
    target_savings: float | None = None
    data_root: str | None = None
    limit: int | None = None
    delta_ranges: tuple[tuple[float, float], ...] = ()
    noise_floor: float | None = None
    shuffle_batches: bool = False
    subset: tuple[Path, ...] = ()
    weight_cap: float | None = None
    record: bool = True

    def __post_init__(self) -> None:
        store_plain(self)
        if (self.policy == SUBSET) != bool(self.subset):
            raise ValueError(f"subset: expected with no other policy, got {self.policy!r}")
        if self.subset and self.target_savings is not None:
            raise ValueError("target_savings: expected without subset, whose size is its saving")
        if self.weight_cap is not None and not self.subset:
            raise ValueError(f"weight_cap: expected with subset only, got {self.weight_cap}")
        check_cap("weight_cap", self.weight_cap)
        if len(self.subset) not in (0, 1, len(self.seeds)):
            raise ValueError(
                f"subset: expected one file, or one for each of {len(self.seeds)} seeds, got "
                f"{len(self.subset)}"
            )
        if is_spec(self.policy):
            self.arm()  # before anything is loaded
            if self.target_savings is not None:
                raise ValueError(
                    "target_savings: expected with a policy's name alone, whose parameters it "
                    f"chooses, got {self.policy!r}"
                )
        elif self.policy not in (*NAMES, SUBSET):
            names = ", ".join(NAMES)
            raise ValueError(f"policy: expected one of {names}, or {FORM}, got {self.policy!r}")
        if self.policy == ALL and not self.compare:
            raise ValueError("policy: all is a comparison; add --compare")
        if self.compare and spec_name(self.policy) == FULL:  # "full()" too
            raise ValueError("policy: full is what the others are compared with; drop --compare")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected different seeds, at least one, got {self.seeds}")
        for seed in self.seeds:
            check_seed(seed)
        check_fraction("prune_ratio", self.prune_ratio, zero=True, one=False)
        check_fraction("delta", self.delta, zero=False, one=True)
        if self.target_savings is not None and not 0 < self.target_savings < 1:
            raise ValueError(
                f"target_savings: expected a number in (0, 1), got {self.target_savings}"
            )
        if self.policy != "bpas":
            for name in ("delta_ranges", "noise_floor", "shuffle_batches"):
                if getattr(self, name):
                    raise ValueError(f"{name}: expected with policy bpas only, got {self.policy}")
        if self.target_savings is not None and self.delta_ranges:
            raise ValueError("target_savings: expected without delta_ranges, which it replaces")

    @property
    def target(self) -> float:
        """What the arms of ``"all"`` save."""
        return TARGET_SAVINGS if self.target_savings is None else self.target_savings

    def subset_of(self, seed: int) -> Path:
        """The file that a seed trains on."""
        return self.subset[self.seeds.index(seed) if len(self.subset) > 1 else 0]

    def arm(self, seed: int | None = None) -> Arm:
        """The policy under test, as an arm; of a subset, of a seed's or the first one's."""
        if self.subset:
            chosen, seconds = read_chosen(self.subset_of(self.seeds[0] if seed is None else seed))
            return Arm(SUBSET, _trained_on(chosen, self.weight_cap), overhead=seconds)
        if self.policy == "bpas":
            return Arm("bpas", self._bpas(*self.delta_ranges[:1]))
        if in_batch.is_choice(self.policy):
            saved = self.prune_ratio if self.target_savings is None else self.target_savings
            return in_batch.read_arm(self.policy, float(1 - decimal_fraction(saved)))
        if is_spec(self.policy):
            return Arm(arm_name(spec_name(self.policy)), read_policy(self.policy))
        choice = Choice(self.prune_ratio, self.delta, self.sampling, self.target_savings)
        return Arm(arm_name(self.policy), make(self.policy, choice, self.train.epochs))

    def _bpas(self, *deltas: tuple[float, float]) -> BPAS:
        # Every batch is full in all arms.
        policy = BPAS(
            self.train.batch_size,
            drop_last=True,
            noise_floor=self.noise_floor,
            shuffle_batches=self.shuffle_batches,
        )
        for start, end in deltas:
            return replace(policy, delta_start=start, delta_end=end)
        target = TARGET_DSI if self.target_savings is None else self.target_savings
        return replace(policy, target_dsi=target)

    def others(self) -> list[Arm]:
        """The same policy under other settings, for the picture of batches per epoch."""
        if self.policy != "bpas":
            return []
        return [
            Arm(f"bpas_{start:g}_{end:g}", self._bpas((start, end)))
            for start, end in self.delta_ranges[1:]
        ]

    def names(self, seed_number: int) -> list[str]:
        """The arms of one seed, in the order they are trained.

        The control and the shortened arm need the number of samples the policy trained, so they
        come after it. Full training and the policy are neighbours and take turns to be first: a
        machine that slows down or warms up favours neither. The other two take turns as well.

        Args:
            seed_number: 0 for the first seed.

        Returns:
            Names of arms, each once.
        """
        if self.policy == ALL:
            # Every arm is first, second, ... in turn.
            names = [FULL, FULL_CUT, *EQUAL]
            return names[seed_number % len(names) :] + names[: seed_number % len(names)]
        if self.policy == SUBSET:
            names = [SUBSET]
            if self.compare:  # what is made from the subset's own samples comes after it
                names = [FULL, SUBSET, RANDOM_SUBSET, RANDOM, FULL_CUT]
                names += [BUDGET] if self._budget() is not None else []
            return names if seed_number % 2 == 0 else [*names[1:2], *names[:1], *names[:1:-1]]
        policy = self.arm().name
        others = [arm.name for arm in self.others()]
        if not self.compare:
            return [policy, *others]
        controls = self._controls()
        if seed_number % 2:
            return [policy, FULL, *reversed(controls), *others]
        return [FULL, policy, *controls, *others]

    def _controls(self) -> list[str]:
        """What the policy is compared with beside full training."""
        within = self.arm().within
        if not isinstance(within, in_batch.InBatch):
            return [RANDOM, FULL_CUT] if self.policy != "random_rescale" else [FULL_CUT]
        controls = [RANDOM] if within.control() != within else []
        # All rows are passed backward where tokens are chosen: as many samples are all of them.
        controls += [FULL_CUT] if within.rule in in_batch.SAMPLES else []
        # Where only the trained are passed forward, as many forward passes are as many samples.
        further = within.rule in (*in_batch.SAMPLES, *in_batch.REFERENCED)
        return controls + ([FULL_FORWARDS] if further and within.control() != within else [])

    def _budget(self) -> Policy | None:
        """Return the policy that saves what the subset saves, where it can save that much."""
        note = files.read_json(self.subset[0].with_name(self.subset[0].name + ".json"))
        trained = len(read_chosen(self.subset[0])[0].normalised()[0])  # a weight of 0 trains none
        try:
            saved = 1 - trained / note["num_samples"]
            return equal(BUDGET, saved, self.delta, self.train.epochs)
        except ValueError:
            return None


def control_ratio(
    num_samples: int, batch_size: int, num_epochs: int, delta: float, samples: int
) -> float:
    """The prune ratio at which random pruning trains as many samples as a policy did.

    Random pruning draws in all P = ceil(delta I) epochs before annealing, the first one included.
    An epoch that keeps K samples trains K - (B - 1) / 2 of them on average, since a batch that is
    not full is left out, so
    K = (samples - (I - P) floor(N / B) B) / P + (B - 1) / 2 and r = 1 - K / N.

    Args:
        num_samples: N.
        batch_size: B.
        num_epochs: I.
        delta: share of the epochs before annealing.
        samples: what the policy trained in all.

    Returns:
        r in [0, 1).

    Raises:
        ValueError: no ratio saves as much.

    Example:
        >>> control_ratio(num_samples=100, batch_size=1, num_epochs=10, delta=0.8, samples=600)
        0.5
    """
    pruned_epochs = math.ceil(decimal_fraction(delta) * num_epochs)
    annealed = (num_epochs - pruned_epochs) * (num_samples // batch_size * batch_size)
    kept = (samples - annealed) / pruned_epochs + (batch_size - 1) / 2
    if kept <= 0:
        raise ValueError(
            f"samples: {samples} of {num_epochs} x {num_samples} cannot be reached by pruning "
            f"{pruned_epochs} epochs at random"
        )
    # A policy that dropped nothing lands a part of a batch above N.
    return max(0.0, 1.0 - kept / num_samples)


def random_like(
    policy: Policy, train: TrainConfig, data: ImageData | TextData, samples: int
) -> RandomSubset:
    """Return the control of a policy: as many samples at random, in the same epochs.

    It weighs what it keeps for what it drops where the policy does, since weights multiply the
    learning rate: with them where the policy has none, it would be another schedule.

    Args:
        policy: under test.
        train: of the run.
        data: of the run.
        samples: what the policy trained in all.

    Returns:
        A fresh random subset in every epoch before annealing, or in all where the policy has none.
    """
    delta = float(getattr(policy, "delta", 1.0))
    ratio = control_ratio(data.num_samples, train.batch_size, train.epochs, delta, samples)
    return RandomSubset(ratio, rescale=_weighs(policy), delta=delta)


def _weighs(policy: Policy) -> bool:
    """Say whether a policy weighs what it keeps; one from outside is taken to do so."""
    if isinstance(policy, ScoreRule):
        return policy.weighs()
    if isinstance(policy, RandomSubset):
        return policy.rescale
    if isinstance(policy, Subset):
        return policy.weights is not None
    return not isinstance(policy, RS2 | KeepAll | BatchPolicy)


def run(
    options: RunOptions,
    say: Callable[[str], None],
    finish: Callable[[files.Run], None] = lambda run: None,
    *,
    resume: bool = False,
    watch: Callable[[PruneEngine], AbstractContextManager[None]] | None = None,
) -> files.Run | None:
    """Train every arm of every seed, and write the files of the run as they come.

    Under torchrun every rank calls it; the first writes and says, and owns the folder meanwhile.

    Args:
        options: what to train.
        say: receives one line per epoch.
        finish: receives what the run found, while the folder is still owned: to write more there.
        resume: save each training after every epoch, and continue those that the folder holds.
        watch: looks at each training's engine meanwhile, on the first rank.

    Returns:
        All trainings; None on all ranks but the first.

    Raises:
        ValueError: an argument that does not fit, or the folder is another run's.
        FileNotFoundError: a data file is missing.
    """
    data = load(options.data, options.data_root, limit=options.limit)
    if options.subset:
        # Of another data set: it says so.
        sizes = {len(read_chosen(path, data.num_samples)[0]) for path in options.subset}
        if len(sizes) > 1:
            raise ValueError(f"subset: expected files of one size, got {sorted(sizes)} samples")
        if options.compare and not isinstance(data, ImageData):
            raise ValueError(f"compare: expected images with subset, got {options.data}")
    # What cannot save the target says so before anything is trained. Except under "all", the
    # control and the shortened arm are made from what the policy has trained: not known yet.
    made_later = () if options.policy == ALL else (RANDOM, FULL_CUT, FULL_FORWARDS)
    for name in options.names(0):
        if name not in made_later:
            _arm(options, name, data, ArmResult(), options.seeds[0])
    if not ranks.is_first():
        _train(options, data, say, resume=resume, watch=None)
        return None
    with owner.owned(options.out):
        planned = [
            f"{name}-seed{seed}"
            for number, seed in enumerate(options.seeds)
            for name in options.names(number)
        ]
        config = _config(options, data, planned)
        for note in config["notes"]:
            say(note)
        if resume:
            _check_same(options.out / "config.json", config)
        else:
            for name in planned:  # an earlier run in the same folder must not be mixed in
                for file in OWN_FILES:
                    (options.out / name / file).unlink(missing_ok=True)
            for file in (*files.REPORTS, *pictures.PICTURES):
                (options.out / file).unlink(missing_ok=True)
        files.write_json(options.out / "config.json", config)
        results = _train(options, data, say, resume=resume, watch=watch)
        # What was trained, not what the folder holds by now: anyone may have changed that.
        found = files.Run(
            config,
            {name: result.rows for name, result in results.items()},
            {name: r.histogram for name, r in results.items() if r.histogram is not None},
        )
        finish(found)
    return found


def _check_same(path: Path, config: dict[str, Any]) -> None:
    """Refuse to continue a run with other arguments."""
    if not path.is_file():
        return
    found = files.read_json(path).get("arguments")
    if _essence(found) != _essence(config["arguments"]):
        raise ValueError(
            f"out: {path.parent} holds a run with other arguments, which cannot be continued: "
            "give them as they were, or another --out"
        )


def _essence(arguments: Any) -> dict[str, Any]:
    """What of a run's arguments decides what it trains, as JSON has it."""
    words: dict[str, Any] = json.loads(json.dumps(arguments)) or {}
    where = {name: None for name in ("out", "data_root")}
    return {**words, **where, "train": {**words.get("train", {}), "progress": None}}


def _keep(options: RunOptions, name: str, seed: int, *, resume: bool) -> Keep:
    """What a training leaves in its folder."""
    folder = options.out / f"{name}-seed{seed}"
    recorded = options.record and name not in (FULL, FULL_CUT, FULL_FORWARDS, RANDOM)
    return Keep(
        folder / RECORDING if recorded else None,
        folder / PREDICTIONS if recorded else None,
        folder / CHECKPOINT if resume else None,
    )


def _train(
    options: RunOptions,
    data: ImageData | TextData,
    say: Callable[[str], None],
    *,
    resume: bool,
    watch: Callable[[PruneEngine], AbstractContextManager[None]] | None,
) -> dict[str, ArmResult]:
    """Train every arm of every seed; the first rank writes each epoch's row."""
    warm_up(data, options.train)
    results: dict[str, ArmResult] = {}
    for number, seed in enumerate(options.seeds):
        tested = ArmResult()
        for name in options.names(number):
            arm = _arm(options, name, data, tested, seed)
            writer = _writer(options, arm, seed, say) if ranks.is_first() else None
            keep = replace(_keep(options, arm.name, seed, resume=resume), watch=watch)
            if ranks.is_first():
                (options.out / f"{arm.name}-seed{seed}").mkdir(parents=True, exist_ok=True)
            result = train_arm(data, options.train, arm, seed, writer, keep=keep)
            if resume and writer is not None:  # the rows on disk may be beyond what was saved
                _write(options.out / f"{arm.name}-seed{seed}", result)
            results[f"{arm.name}-seed{seed}"] = result
            if options.policy != ALL and name == options.arm().name:
                tested = result
    return results


def _arm(
    options: RunOptions, name: str, data: ImageData | TextData, tested: ArmResult, seed: int
) -> Arm:
    """An arm by its name; the last two are made from what the policy trained."""
    if name == FULL:
        return Arm(FULL, KeepAll())
    if options.policy == ALL:
        epochs, batch = options.train.epochs, options.train.batch_size
        if name == FULL_CUT:
            steps = round((1 - options.target) * epochs * (data.num_samples // batch))
            return Arm(FULL_CUT, KeepAll(), samples=max(1, steps) * batch)
        return Arm(name, equal(name, options.target, options.delta, epochs, options.sampling))
    if name == RANDOM_SUBSET:
        assert isinstance(data, ImageData)
        trained, _ = read_chosen(options.subset_of(seed))[0].normalised()  # of a weight above 0
        drawn = alike_at_random(trained, data.train_labels, seed)
        return Arm(RANDOM_SUBSET, Subset(PerSample(drawn)))
    if name == BUDGET and options.subset:
        policy = options._budget()  # pyright: ignore[reportPrivateUsage]
        assert policy is not None
        return Arm(BUDGET, policy)
    if name in (FULL_CUT, FULL_FORWARDS):
        batch = options.train.batch_size
        count = tested.served if name == FULL_CUT else tested.forwards
        # A part of a batch was trained of each: the nearest number of whole ones.
        return Arm(name, KeepAll(), samples=max(1, round(count / batch)) * batch)
    within = options.arm().within if name == RANDOM else None
    if isinstance(within, in_batch.InBatch):
        return Arm(RANDOM, KeepAll(), within=within.control())
    if name == RANDOM:
        like = options.arm(seed).policy
        if isinstance(like, BPAS):
            return Arm(RANDOM, _batches_like(like, options.train.epochs, tested))
        return Arm(RANDOM, random_like(like, options.train, data, tested.served))
    arms = {arm.name: arm for arm in (options.arm(seed), *options.others())}
    return arms[name]


def _batches_like(policy: BPAS, num_epochs: int, tested: ArmResult) -> RandomBatches:
    """Return the control that drops as many of the same batches, epoch by epoch, at random."""
    kept = tuple(row["batches"] for row in tested.rows)
    if len(kept) < num_epochs:
        kept += (0,)  # the policy had dropped everything by then
    return RandomBatches(
        policy.batch_size,
        kept=kept,
        drop_last=policy.drop_last,
        shuffle_batches=policy.shuffle_batches,
    )


def _write(folder: Path, result: ArmResult) -> None:
    """Write the rows and the loss distribution of a training."""
    files.write_rows(folder / "metrics.jsonl", result.rows)
    if result.histogram is not None:
        files.write_json(folder / "losses.json", result.histogram)


def _trained_on(chosen: Coreset, cap: float | None) -> Subset:
    indices, weights = chosen.normalised(cap)
    return Subset(PerSample(indices), None if weights is None else PerSample(weights))


def _notes(options: RunOptions) -> list[str]:
    """Say what of a run is known to end badly before it is begun."""
    found: list[str] = []
    for path in options.subset:
        indices, weights = read_chosen(path)[0].normalised(options.weight_cap)
        if weights is None:
            continue
        count, made = len(indices), Coreset(indices, weights, indices)
        if made.effective < LEAST_EFFECTIVE * count:
            found.append(
                f"The weights of {path.name} let {count:,} samples train like "
                f"{made.effective:,.0f}, the heaviest weighs {float(weights.max()):.0f} times the "
                "mean: most steps are those of one or two samples, and the training may fail; "
                "--weight-cap 2 bounds them, --weight-cap 1 leaves them out."
            )
    return found


def _writer(
    options: RunOptions, arm: Arm, seed: int, say: Callable[[str], None]
) -> Callable[[ArmResult], None]:
    folder = options.out / f"{arm.name}-seed{seed}"
    peak = options.train.lr

    def on_row(result: ArmResult) -> None:
        _write(folder, result)
        row = result.rows[-1]
        loss = "nan" if row["train_loss"] is None else f"{row['train_loss']:.4f}"
        metric, value = metric_of(row)
        tested = f"{100 * value:.2f}%" if metric == ACCURACY else f"{metric} {value:.3f}"
        say(
            f"{arm.name:<14} seed {seed}  epoch {row['epoch'] + 1:>3}/{row['num_epochs']}  "
            f"loss {loss}  test {tested}  "
            f"trained {row['served']}/{row['num_samples']}  {row['seconds']:.2f} s"
            f"{_warned(arm.name, result, peak)}"
        )

    return on_row


def _warned(name: str, result: ArmResult, peak: float) -> str:
    """Return what to say, once, of weights that take samples beyond the schedule's peak."""
    rates = [row.get("effective_lr", 0.0) for row in result.rows]
    above = [rate > peak * (1 + 1e-6) for rate in rates]
    if not above[-1] or any(above[:-1]):
        return ""
    return (
        f"\n{name}: weights train samples at up to {rates[-1]:.3g}, above the schedule's peak of "
        f"{peak:g}: where it diverges, try --scale-lr or a lower --lr"
    )


def _config(options: RunOptions, data: ImageData | TextData, planned: list[str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "arguments": {
            **asdict(options),
            "out": str(options.out),
            "subset": [str(path) for path in options.subset] or None,
            "data_root": None if options.data_root is None else str(options.data_root),
        },
        "notes": _notes(options),
        "policy_arm": options.policy if options.policy in (ALL, SUBSET) else options.arm().name,
        "runs": planned,
        "num_samples": data.num_samples,
        "num_test": data.num_test,
        "world_size": world()[1],
        **environment.describe(),
    }
