# SPDX-License-Identifier: Apache-2.0
"""Costs and accuracies of the methods of selection, in pieces that resume.

python bench/coresets.py cost                      # one class of ImageNet's shape
python bench/coresets.py reference                 # beside apricot and submodlib, if installed
python bench/coresets.py large --samples 100000    # whole data sets, a process each
python bench/coresets.py accuracy --data fashion_mnist --data-root DIR --limit 3000
python bench/coresets.py table --into bench/results/coresets.md

Every piece writes its rows to bench/results/coresets/ as it gets them and does not measure again
what is there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before the first import of torch: a spinning barrier collapses when a core is taken away.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

import prune_engine as pe
from prune_engine import coresets
from prune_engine.coresets.dynamics import DYNAMICS, TrainingDynamics
from prune_engine.coresets.graphcut import similarities
from prune_engine.coresets.pairs import Dense, kept
from prune_engine.recipes import environment
from prune_engine.recipes.data import ImageData, load
from prune_engine.recipes.results import T95, spread
from prune_engine.recipes.trainer import TrainConfig, make_trainer

RESULTS = Path(__file__).parent / "results" / "coresets"
CLASS = {"n": 1300, "classes": 1000, "width": 2048, "k": 780}  # of ImageNet, k = 60%
NUM_CLASSES, IMAGENET = 1000, 1_281_167
# What of the table looks at features, logits and targets: the rest takes a sort.
COSTED = (
    "herding",
    "k_center",
    "contextual_diversity",
    "entropy",
    "grand",
    "cal",
    "craig",
    "gradmatch",
    "glister",
    "graphcut",
    "facility_location",
    "influence",
    "dp",
    "dq",
)
WEIGHED = ("craig", "gradmatch")
PUBLISHED = ("herding", "cal", "forgetting", "glister")
BEGIN, END = "<!-- table -->", "<!-- /table -->"
TRAIN = {
    "fashion_mnist": TrainConfig(model="cnn", epochs=12, batch_size=64, lr=0.1),
    "cifar10": TrainConfig(model="cnn", epochs=12, batch_size=64, lr=0.1, augment=True),
    "digits": TrainConfig(model="mlp", epochs=15, batch_size=32, lr=0.05),
}
FRACTIONS = (0.3, 0.5, 0.7)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _rows(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []


def _keep(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows so far, one a line, with the circumstances."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in rows)
    about = json.dumps(environment.describe())
    fresh = file.with_suffix(".new")
    fresh.write_text(f'{{"about": {about},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    fresh.replace(file)


def peak_mib() -> float:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def features_of(n: int, width: int, seed: int = 0) -> Tensor:
    """Return features as a ReLU network has them: not negative, about half of them 0."""
    made = torch.empty(n, width)
    generator = torch.Generator().manual_seed(seed)
    for part in made.split(2**16):
        part.normal_(generator=generator).relu_()
    return made


def measure(choose: Callable[[], coresets.Coreset], repeats: int) -> dict[str, Any]:
    """Time a selection: wall and processor seconds, and how far memory rose above its inputs."""
    seconds: list[float] = []
    busy: list[float] = []
    before = peak_mib()
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        choose()
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
    return {
        "seconds": seconds,
        "cpu_seconds": busy,
        "peak_mib": peak_mib() - before,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def one_class(method: str, repeats: int) -> dict[str, Any]:
    """Measure a method on one class of ImageNet's shape, in this process."""
    n, k = CLASS["n"], CLASS["k"]
    generator = torch.Generator().manual_seed(0)
    given = {
        "features": features_of(n, CLASS["width"]),
        "logits": 2 * torch.randn(n, CLASS["classes"], generator=generator),
        "targets": torch.zeros(n, dtype=torch.int64),
    }
    # The libraries' own buffers are no part of a method.
    given["features"] @ given["features"][:256].T
    measured = measure(lambda: coresets.select(method, k=k, **given), repeats)
    return {"method": method, **CLASS, **measured}


def cost(arguments: argparse.Namespace) -> None:
    """Measure every method on one class, each in a process of its own."""
    file = RESULTS / "cost.json"
    rows = _rows(file)
    for method in arguments.methods or COSTED:
        if any(row["method"] == method for row in rows):
            continue
        command = [sys.executable, __file__, "one", method, "--repeats", str(arguments.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        _say(f"{method}: {min(rows[-1]['seconds']):.3f} s, {rows[-1]['peak_mib']:.0f} MiB")
        _keep(file, rows)


def one(arguments: argparse.Namespace) -> None:
    """Print one class of one method: what ``cost`` starts."""
    torch.set_num_threads(arguments.threads)
    print(json.dumps(one_class(arguments.method, arguments.repeats)))


def similar(n: int) -> tuple[dict[str, Tensor], Any]:
    """Return a class and its matrix of similarities, which the libraries are given for nothing."""
    generator = torch.Generator().manual_seed(0)
    given = {
        "features": features_of(n, 256),
        "logits": 2 * torch.randn(n, 100, generator=generator),
        "targets": torch.zeros(n, dtype=torch.int64),
    }
    samples = coresets.Samples(torch.arange(n), **given)
    matrix = kept(similarities(samples, "gradients"))
    assert isinstance(matrix, Dense)
    return given, matrix.entries.double().numpy()


def apricot_choice(name: str, entries: Any, k: int) -> list[int]:
    """Choose by apricot's lazy greedy, the second call: the first one compiles."""
    library = importlib.import_module("apricot")
    kind = {"graphcut": "GraphCutSelection", "facility_location": "FacilityLocationSelection"}
    made = getattr(library, kind[name])(k, metric="precomputed", optimizer="lazy")
    return [int(i) for i in made.fit(entries).ranking]


def submodlib_choice(name: str, entries: Any, k: int) -> list[int]:
    """Choose by submodlib's lazy greedy."""
    n = len(entries)
    words = {"n": n, "mode": "dense", "separate_rep": False}
    if name == "graphcut":
        module = importlib.import_module("submodlib.functions.graphCut")
        words = {"n": n, "mode": "dense", "lambdaVal": 1.0, "separate_rep": False}
        made = module.GraphCutFunction(ggsijs=entries, **words)
    else:
        module = importlib.import_module("submodlib.functions.facilityLocation")
        made = module.FacilityLocationFunction(sijs=entries, **words)
    found = made.maximize(k, "LazyGreedy", False, False, 1.0, False, False)
    return [int(i) for i, _ in found]


def reference(arguments: argparse.Namespace) -> None:
    """Time the libraries that have these functions, each given the matrix, beside this one."""
    torch.set_num_threads(arguments.threads)
    file, n = RESULTS / "reference.json", CLASS["n"]
    rows: list[dict[str, Any]] = []
    given, entries = similar(n)
    k = CLASS["k"]
    for name in ("graphcut", "facility_location"):
        ours = coresets.select(name, k=k, **given).order.tolist()
        libraries: dict[str, Callable[[], list[int]]] = {
            "prune_engine": lambda name=name: coresets.select(name, k=k, **given).order.tolist(),
            "apricot": lambda name=name: apricot_choice(name, entries, k),
            "submodlib": lambda name=name: submodlib_choice(name, entries, k),
        }
        for library, choose in libraries.items():
            apricot_choice(name, entries, 2)  # compiles
            began, worked = time.perf_counter(), time.process_time()
            try:
                found = choose()
            except Exception as error:  # a library that cannot is a row as well
                rows.append({"library": library, "method": name, "error": repr(error)})
                continue
            rows.append(
                {
                    "library": library,
                    "method": name,
                    "n": n,
                    "k": k,
                    "seconds": time.perf_counter() - began,
                    "cpu_seconds": time.process_time() - worked,
                    "same": len(set(found) & set(ours)) / k,
                    "load": os.getloadavg()[0],
                }
            )
            _say(str(rows[-1]))
            _keep(file, rows)


def large(arguments: argparse.Namespace) -> None:
    """Measure selections of a whole data set of features, each in a process of its own."""
    n = arguments.samples
    file = RESULTS / f"large-{n}.json"
    rows = _rows(file)
    k = arguments.count or n // 2
    shape = {"samples": n, "width": arguments.width, "classes": arguments.classes, "count": k}
    words = [f"--{name}={value}" for name, value in shape.items()]
    for name in arguments.methods:
        if any(row["method"] == name and row["k"] == k for row in rows):
            continue
        command = [sys.executable, __file__, "whole", name, *words]
        done = subprocess.run(
            [*command, "--threads", str(arguments.threads)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows.append(json.loads(done.stdout))
        _say(f"{name}: {rows[-1]['seconds'][0]:.1f} s, {rows[-1]['peak_mib']:.0f} MiB more")
        _keep(file, rows)


def whole(arguments: argparse.Namespace) -> None:
    """Print a whole data set of one method: what ``large`` starts."""
    torch.set_num_threads(arguments.threads)
    shape = {"n": arguments.samples, "width": arguments.width, "classes": arguments.classes}
    print(json.dumps(one_data_set(arguments.method, k=arguments.count, **shape)))


def one_data_set(name: str, *, n: int, width: int, classes: int, k: int) -> dict[str, Any]:
    """Measure a method on a whole data set, class by class or ``:whole``, in this process."""
    method, _, form = name.partition(":")
    balance, generator = form != "whole", torch.Generator().manual_seed(0)
    needs = (*coresets.TABLE[method].needs, "targets")
    given = {"targets": torch.randint(classes, (n,), generator=generator)}
    if "features" in needs:
        given["features"] = features_of(n, width)
    if "logits" in needs:
        given["logits"] = torch.randn(n, classes, generator=generator)
    first = features_of(4096, width)
    first @ first[:256].T  # the libraries' own buffers are no part of a method
    measured = measure(lambda: coresets.select(method, k=k, balance=balance, **given), 1)
    shape = {"n": n, "width": width, "classes": classes, "k": k, "balance": balance}
    inputs = sum(value.nbytes for value in given.values()) / 2**20
    return {"method": name, **shape, "inputs_mib": inputs, **measured}


def fit(
    data: ImageData, config: TrainConfig, policy: pe.policies.Policy, seed: int, observe: str
) -> tuple[Any, pe.PruneEngine, float]:
    """Train one model; return trainer, engine and the test accuracy after the last epoch."""
    trainer = make_trainer(data, config, seed)
    engine = pe.PruneEngine(
        data.num_samples, policy, num_epochs=config.epochs, seed=seed, coverage="ignore"
    )
    if isinstance(policy, pe.policies.Subset):  # as the papers' code trains with weights
        trainer.reduction = "weighted_mean"
    loader = trainer.loader(engine)
    steps = max(2, config.epochs * (data.num_samples // config.batch_size))
    schedule = engine.wrap_scheduler(
        torch.optim.lr_scheduler.OneCycleLR(trainer.optimizer, config.lr, total_steps=steps), steps
    )
    for _ in range(config.epochs):
        for images, labels, indices in loader:
            if observe == "loss":
                loss, _ = trainer.observe(engine, images, labels, indices)
            else:
                logits = trainer.logits(images).float()
                loss = engine.cross_entropy_observe(logits, labels, indices, score=observe)
            trainer.step(loss)
            schedule.step()
        engine.end_epoch()
    return trainer, engine, trainer.evaluate()


def evidence(data: ImageData, config: TrainConfig, seed: int) -> dict[str, Any]:
    """Train the small model once, and return all that any method is made of."""
    began = time.perf_counter()
    policy = TrainingDynamics(min(10, config.epochs), num_classes=data.num_classes)
    trainer, engine, tested = fit(data, config, policy, seed, "forgetting")

    def batches() -> Any:
        for part in torch.arange(data.num_samples).split(1000):
            yield trainer.normalised(data.train_images[part]), data.train_labels[part], part

    made = coresets.embed(trainer.model, batches(), num_samples=data.num_samples)
    memory: Any = engine.memory
    recorded = {name: memory.scores(name) for name in DYNAMICS}
    recorded["forgetting"] = pe.scores.forgetting_events(engine.scores())
    # A dropped tail may have left a sample without a window: the middle is a fair place for it.
    for name, values in recorded.items():
        recorded[name] = torch.where(torch.isnan(values), values.nanmedian(), values)
    return {
        "features": made.features,
        "logits": made.logits,
        "targets": made.targets,
        "head": made.head,
        "recorded": recorded,
        "accuracy": tested,
        "seconds": time.perf_counter() - began,
    }


def candidates(found: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return every row of the table: a method, and what it is given."""
    whole = {name: found[name] for name in ("features", "logits", "targets", "head")}
    rows: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name, kind in coresets.TABLE.items():
        if name == "hardest":
            for score in DYNAMICS:
                rows[score] = (kind(), {"scores": found["recorded"][score]})
            continue
        given = {need: whole[need] for need in kind.needs if need != "scores"}
        if "scores" in kind.needs:
            el2n = pe.scores.el2n(found["logits"], found["targets"])
            given["scores"] = found["recorded"]["forgetting"] if name == "forgetting" else el2n
        rows[name] = (kind(), given)
        if name in WEIGHED:
            rows[f"{name} (weights of 1)"] = (kind(), given)
        if name in PUBLISHED:
            rows[f"{name} (published)"] = (coresets.TABLE[name](published=True), given)
    return rows


def accuracy(arguments: argparse.Namespace) -> None:
    """Train on every method's subsets, seed by seed."""
    torch.set_num_threads(arguments.threads)
    data = load(arguments.data, arguments.data_root, limit=arguments.limit)
    assert isinstance(data, ImageData)
    config = replace(TRAIN[arguments.data], model=arguments.model)
    for seed in arguments.seeds:
        file = RESULTS / f"{arguments.data}-{arguments.model}-{data.num_samples}-seed{seed}.json"
        rows = _rows(file)
        done = {(row["method"], row["fraction"]) for row in rows}
        shared = {"data": arguments.data, "samples": data.num_samples, "seed": seed}
        shared |= {"model": config.model, "epochs": config.epochs, "batch_size": config.batch_size}

        def add(method: str, fraction: float, **more: Any) -> None:
            rows.append({**shared, "method": method, "fraction": fraction, **more})  # noqa: B023
            _keep(file, rows)  # noqa: B023
            _say(f"seed {shared['seed']} {method} {fraction}: {100 * more['accuracy']:.2f}%")  # noqa: B023

        if ("full", 1.0) not in done:
            add("full", 1.0, accuracy=fit(data, config, pe.KeepAll(), seed, "loss")[2])
        for fraction in arguments.fractions:
            if ("random*", fraction) not in done:  # drawn anew every epoch
                policy = pe.RandomSubset(1 - fraction, sampling="fixed")
                add("random*", fraction, accuracy=fit(data, config, policy, seed, "loss")[2])
        cache = arguments.cache and arguments.cache / f"{file.stem}.pt"
        if cache and cache.is_file():
            found = torch.load(cache, weights_only=True)
        else:
            found = evidence(data, config, 1000 + seed)
            if cache:
                torch.save(found, cache)
        jobs = [
            (fraction, name, *what)
            for fraction in arguments.fractions
            for name, what in candidates(found).items()
        ]
        jobs.sort(key=lambda job: job[1].startswith("gradmatch"))  # the slowest last
        for fraction, name, method, given in jobs:
            if (name, fraction) in done or name.startswith(tuple(arguments.without)):
                continue
            began = time.perf_counter()
            chosen = coresets.select(
                method,
                k=int(fraction * data.num_samples),
                seed=seed,
                **{"targets": data.train_labels, **given},
            )
            seconds = time.perf_counter() - began
            if name.endswith("(weights of 1)"):
                chosen = replace(chosen, weights=torch.ones_like(chosen.weights))
            policy = pe.policies.Subset(*chosen.normalised())
            add(
                name,
                fraction,
                accuracy=fit(data, config, policy, seed, "loss")[2],
                select_seconds=seconds,
                evidence_seconds=found["seconds"] if method.needs else 0.0,
                trained=len(chosen.normalised()[0]),
            )


def _cell(values: Sequence[float], digits: int = 2) -> str:
    mean, deviation = spread(list(values))
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def accuracy_table(rows: list[dict[str, Any]]) -> str:
    """One line per method, beside random of the same seeds."""
    fractions = sorted({row["fraction"] for row in rows if row["fraction"] < 1})
    tested: dict[tuple[str, float], dict[int, float]] = {}
    for row in rows:
        cell = tested.setdefault((row["method"], row["fraction"]), {})
        cell[row["seed"]] = 100 * row["accuracy"]
    full = tested.get(("full", 1.0), {})
    lines = [
        "| method | "
        + " | ".join(f"{100 * f:.0f}% | less that of random" for f in fractions)
        + " | n of each | select s |",
        "| --- |" + " ---: | ---: |" * len(fractions) + " ---: | ---: |",
        f"| full data | {_cell(list(full.values()))} |"
        + " |" * (2 * len(fractions) - 1)
        + f" {len(full)} | |",
    ]
    names = dict.fromkeys(row["method"] for row in rows if row["method"] != "full")
    for name in names:
        cells: list[str] = []
        counts: list[int] = []
        for fraction in fractions:
            own, base = tested.get((name, fraction), {}), tested.get(("random", fraction), {})
            gaps = [own[seed] - base[seed] for seed in own if seed in base]
            counts.append(len(own))
            cells.append(_cell(list(own.values())) if own else "-")
            cells.append(_gap(gaps) if name != "random" else "")
        spent = [row for row in rows if row["method"] == name and "select_seconds" in row]
        seconds = f"{statistics.median(r['select_seconds'] for r in spent):.2f}" if spent else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {'/'.join(map(str, counts))} | {seconds} |")
    return "\n".join(lines)


def _gap(gaps: list[float]) -> str:
    """A mean difference with its 95% interval; bold where that leaves out 0."""
    if len(gaps) < 2:
        return f"{gaps[0]:+.2f}" if gaps else "-"
    mean, deviation = spread(gaps)
    bound = T95.get(len(gaps) - 1, 2.262) * deviation / len(gaps) ** 0.5
    text = f"{mean:+.2f} ± {bound:.2f}"
    return f"**{text}**" if abs(mean) > bound else text


def cost_table(rows: list[dict[str, Any]]) -> str:
    """One line per method: a class, and the thousand of them."""
    lines = [
        "| method | s, one class | processor s | 1,000 classes | peak MiB | repeats |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        best, busy = min(row["seconds"]), min(row["cpu_seconds"])
        whole = best * NUM_CLASSES
        said = f"{whole / 60:.0f} min" if whole < 7200 else f"{whole / 3600:.1f} h"
        lines.append(
            f"| {row['method']} | {best:.3f} | {busy:.3f} | {said} | {row['peak_mib']:.0f} "
            f"| {len(row['seconds'])} |"
        )
    return "\n".join(lines)


def reference_table(rows: list[dict[str, Any]]) -> str:
    """One line per function and library."""
    lines = [
        "| function | library | s | processor s | of the same samples |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['method']} | {row['library']} | {row['error']} | | |")
            continue
        lines.append(
            f"| {row['method']} | {row['library']} | {row['seconds']:.2f} "
            f"| {row['cpu_seconds']:.2f} | {100 * row['same']:.1f}% |"
        )
    return "\n".join(lines)


def large_table(rows: list[dict[str, Any]]) -> str:
    """One line per selection of a whole data set."""
    lines = [
        "| method | N | d | C | k | class by class | threads | s | processor s | inputs MiB "
        "| more MiB |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        lines.append(
            f"| {row['method'].partition(':')[0]} | {row['n']:,} | {row['width']} "
            f"| {row['classes']} | {row['k']:,} | {'yes' if row['balance'] else 'no'} "
            f"| {row['threads']} | {row['seconds'][0]:.1f} | {row['cpu_seconds'][0]:.1f} "
            f"| {row['inputs_mib']:.0f} | {row['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def page() -> str:
    """All tables that there are rows for."""
    parts: list[str] = []
    if rows := _rows(RESULTS / "cost.json"):
        parts.append("## One class of ImageNet's shape\n\n" + cost_table(rows))
    if rows := _rows(RESULTS / "reference.json"):
        parts.append(
            f"## Beside apricot and submodlib\n\nn = {CLASS['n']:,}, k = {CLASS['k']}; they are "
            "given the matrix of similarities, this package makes it.\n\n" + reference_table(rows)
        )
    rows = [row for file in sorted(RESULTS.glob("large-*.json")) for row in _rows(file)]
    if rows:
        parts.append("## Whole data sets of features\n\n" + large_table(rows))
    runs: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(RESULTS.glob("*-seed*.json")):
        runs.setdefault(re.sub(r"-seed\d+$", "", file.stem), []).extend(_rows(file))
    for rows in runs.values():
        first = rows[0]
        parts.append(
            f"## {first['data']}, {first['model']}, {first['samples']:,} samples\n\n"
            f"{first['epochs']} epochs, batch {first['batch_size']}; test accuracy % after the "
            f"last one, of all test images.\n\n{accuracy_table(rows)}"
        )
    return "\n\n".join(parts)


def table(arguments: argparse.Namespace) -> None:
    """Print the tables, or put them between the marks of a page."""
    if arguments.into is None:
        print(page())
        return
    text = arguments.into.read_text(encoding="utf-8")
    head, mark, rest = text.partition(BEGIN)
    if not mark or END not in rest:
        raise SystemExit(f"{arguments.into} must have {BEGIN} and {END}")
    body = f"{head}{BEGIN}\n\n{page()}\n\n{END}{rest.partition(END)[2]}"
    arguments.into.write_text(body, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    cores = environment.cores()

    costs = commands.add_parser("cost")
    costs.add_argument("--methods", nargs="*", choices=COSTED)
    costs.add_argument("--repeats", type=int, default=3)
    costs.set_defaults(run=cost)

    single = commands.add_parser("one")
    single.add_argument("method")
    single.add_argument("--repeats", type=int, default=3)
    single.add_argument("--threads", type=int, default=cores)
    single.set_defaults(run=one)

    others = commands.add_parser("reference")
    others.add_argument("--threads", type=int, default=cores)
    others.set_defaults(run=reference)

    many, data_set = commands.add_parser("large"), commands.add_parser("whole")
    many.add_argument("--methods", nargs="+", default=["k_center:whole", "herding"])
    many.set_defaults(run=large)
    data_set.add_argument("method")
    data_set.set_defaults(run=whole)
    for parsed in (many, data_set):
        parsed.add_argument("--samples", type=int, default=IMAGENET)
        parsed.add_argument("--width", type=int, default=512)
        parsed.add_argument("--classes", type=int, default=1000)
        parsed.add_argument("--count", type=int)
        parsed.add_argument("--threads", type=int, default=cores)

    tested = commands.add_parser("accuracy")
    tested.add_argument("--data", choices=TRAIN, default="fashion_mnist")
    tested.add_argument("--data-root")
    tested.add_argument("--model", choices=("mlp", "cnn"), default="cnn")
    tested.add_argument("--limit", type=int)
    tested.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    tested.add_argument("--fractions", type=float, nargs="+", default=list(FRACTIONS))
    tested.add_argument("--without", nargs="*", default=[], help="methods to leave for later")
    tested.add_argument("--cache", type=Path, help="folder for what the small models gave")
    tested.add_argument("--threads", type=int, default=1)
    tested.set_defaults(run=accuracy)

    tables = commands.add_parser("table")
    tables.add_argument("--into", type=Path)
    tables.set_defaults(run=table)
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
