# SPDX-License-Identifier: Apache-2.0
"""The command line: ``prune-engine train | study | select | report | compare | info | ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prune_engine import backends, terminal_view
from prune_engine.files import write_bytes
from prune_engine.losses.scores import SCORES
from prune_engine.recipes import (
    compare,
    data,
    diagnostics,
    environment,
    files,
    inspection,
    language,
    models,
    optimizers,
    owner,
    pictures,
    ranks,
    results,
    selection,
    selftest,
    terminal,
)
from prune_engine.recipes.data import DATA_SETS, IMAGE_SETS
from prune_engine.recipes.policy_spec import spec_name
from prune_engine.recipes.report import page, view
from prune_engine.recipes.results import FOOTNOTE
from prune_engine.recipes.study import design, figure, regimes, rules, tables
from prune_engine.recipes.study import run as study
from prune_engine.recipes.train import Bar


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        0 done; 1 a check found a fault; 2 the arguments or a file do not fit, and stderr says how.

    Example:
        >>> main(["train", "--data", "fashion_mnist"])  # no --data-root: says so on stderr
        2
    """
    arguments = _parser().parse_args(argv)
    try:
        with _warned_in_a_line(arguments.command):
            return arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        # A name on a latin-1 disk, torch's message of many lines: it stays one line all the same.
        words = " ".join(str(error).split())
        print(f"prune-engine {arguments.command}: error: {words}", file=sys.stderr)
        _drop_unprinted()
        return 2


@contextmanager
def _warned_in_a_line(command: str) -> Generator[None, None, None]:
    """Show a warning as a command's word to its user: without a line of this library's source."""

    def line(message: Warning | str, *where: object, **more: object) -> str:
        return f"prune-engine {command}: warning: {message}\n"

    before = warnings.formatwarning  # the hook that the standard library has for it
    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before


def _say(text: str) -> None:
    """Print in whatever letters the terminal has: an ASCII one loses no table for a sign."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plainer = text.replace("\N{PLUS-MINUS SIGN}", "+/-")
        text = plainer.encode(encoding, "backslashreplace").decode(encoding)
    print(text, flush=True)


def _drop_unprinted() -> None:
    """Let the interpreter end in peace where the reader of its output has gone."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _Progress:
    """Says a line per epoch until it cannot, and never stops a training for that."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self, line: str) -> None:
        try:
            if not self.broken:
                _say(line)
        except OSError:  # the last lines, after all is written, say so
            self.broken = True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prune-engine", description="Dynamic data pruning: train, measure, inspect."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands.add_parser("train", help="train on real data, with and without pruning"))

    _add_study(commands.add_parser("study", help="which rule beats a random subset, and where"))

    _add_language(
        commands.add_parser("language", help="a small GPT-2 by Hugging Face's and TRL's trainers")
    )

    info = commands.add_parser("info", help="versions, devices, backends")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.add_argument(
        "--check", action="store_true", help="a self-test of every operator, in seconds"
    )
    info.set_defaults(run=_info)

    inspect = commands.add_parser("inspect", help="what a saved engine state holds")
    inspect.add_argument("state", type=Path, metavar="STATE.pt")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument("--top", type=int, metavar="K", help="show the K highest scores")
    inspect.add_argument("--data", choices=DATA_SETS, help="what the samples are")
    inspect.add_argument("--data-root", metavar="DIR", help="the folder of the data set's folder")
    inspect.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    inspect.set_defaults(run=_inspect)

    _add_select(commands.add_parser("select", help="choose a fixed subset of a data set"))

    report = commands.add_parser("report", help="one page, and the table, from the files of runs")
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN")
    report.add_argument(
        "--out", type=Path, metavar="PAGE.html", help="default: report.html in the first RUN"
    )
    report.add_argument("--data-root", metavar="DIR", help="where the data is now")
    report.add_argument("--classes", type=Path, metavar="FILE", help="names, one on each line")
    _add_pictures(report)
    report.set_defaults(run=_report)

    compared = commands.add_parser("compare", help="one table across runs")
    compared.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN")
    compared.add_argument("--markdown", action="store_true", help="with pipes")
    compared.set_defaults(run=_compare)

    bench = commands.add_parser("bench", help="time observe and plan on this machine")
    bench.add_argument("--samples", type=int, default=1_000_000, metavar="N")
    bench.add_argument("--batch-size", type=int, default=256, metavar="B")
    bench.add_argument("--device", default="cpu")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.set_defaults(run=_bench)
    return parser


def _add_select(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_select)
    add = parser.add_argument
    add("state", nargs="?", help=argparse.SUPPRESS)  # what it was until 0.1: refused with words
    for old in ("--keep", "--forgetting"):
        add(old, nargs="?", const=True, help=argparse.SUPPRESS)
    add("--method", choices=selection.METHODS, metavar="NAME", help=", ".join(selection.METHODS))
    add("--data", choices=IMAGE_SETS, default="digits", help="default: digits, without any file")
    add("--data-root", metavar="DIR", help="the folder that holds the data set's folder")
    add("--out", type=Path, metavar="SUBSET.npy", help="(default: DATA-METHOD-K.npy)")
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--count", type=int, metavar="K")
    number.add_argument("--fraction", type=float, metavar="F", help="of all samples, rounded down")
    add(
        "--balance",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="class by class, in proportion (default)",
    )
    add("--seed", type=int, default=0, metavar="S", help="of the small model and of the choice")
    add("--runs", type=int, default=1, metavar="R", help="models that a score is averaged over")
    add("--score", help="for stratified and hardest (default: el2n)")
    add("--beta", type=float, default=0.0, help="for stratified: share of the hardest left out")
    add(
        "--exact",
        action="store_true",
        help="for deepfool: move the images themselves (default: the last layer's closed form)",
    )
    add("--features", type=Path, metavar="DIR", help="keep the features there, mapped, not held")
    group = parser.add_argument_group("the small model (defaults depend on --data)")
    more = group.add_argument
    more("--model", choices=models.IMAGE_MODELS)
    more("--epochs", type=int, help=f"default: {selection.EPOCHS}")
    more("--batch-size", type=int)
    more("--lr", type=float, help="peak of the one-cycle schedule")
    more("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast")
    more("--device", help="such as cpu or cuda (default: cpu)")
    add("--threads", type=int, help="of torch (default: all cores; 1 for digits)")
    add("--json", action="store_true", help="print JSON")
    add("--limit", type=int, help=argparse.SUPPRESS)


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also draw PNG files, with Matplotlib",
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_train)
    add = parser.add_argument
    add("--data", choices=DATA_SETS, default="digits", help="default: digits, without any file")
    add("--data-root", metavar="DIR", help="the folder that holds the data set's folder")
    add(
        "--policy",
        metavar="POLICY",
        help=f"one of {', '.join(compare.NAMES)}; or a call, 'orderdp(keep=0.3)' or "
        f"'mymodule:MyPolicy(keep=0.3)'; default: {compare.DEFAULT_POLICY}",
    )
    add(
        "--subset",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="train on what `select` wrote, all epochs: one file for all seeds, or one for each",
    )
    add("--weight-cap", type=float, metavar="W", help="of a subset's weights, whose mean is 1")
    add("--prune-ratio", type=float, default=0.5, metavar="R")
    add("--delta", type=float, default=0.875, help="share of the epochs before annealing")
    add(
        "--target-savings",
        type=float,
        metavar="S",
        help="make the policy save this share of the run (--policy all: 0.4)",
    )
    add("--sampling", choices=("bernoulli", "fixed"), default="bernoulli")
    add(
        "--delta-range",
        type=_delta_range,
        action="append",
        metavar="START:END",
        help="of bpas; more of them are trained beside the first and drawn in batches.png",
    )
    add("--noise-floor", type=float, metavar="Z", help="of bpas, in standard deviations of noise")
    add("--shuffle-batches", action="store_true", help="of bpas: another order every epoch")
    add("--compare", action="store_true", help="also full training, cut training and the control")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, metavar="S", help="train this one seed")
    seeds.add_argument(
        "--seeds", type=int, metavar="N", help="train seeds 0..N-1 (default: 3 with --compare)"
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="run folder, of one run at a time (default: runs/DATA-POLICY)",
    )
    group = parser.add_argument_group("training (defaults depend on --data)")
    more = group.add_argument
    more("--model", choices=models.MODELS)
    more("--epochs", type=int)
    more("--batch-size", type=int)
    more("--optimizer", choices=optimizers.OPTIMIZERS)
    more("--lr", type=float, help="peak of the one-cycle schedule")
    more(
        "--scale-lr",
        action=argparse.BooleanOptionalAction,
        help="divide the rate by the largest weight of each epoch's plan",
    )
    more("--weight-decay", type=float)
    more("--label-smoothing", type=float, help="of the loss that is trained on; a score has none")
    more("--score", choices=SCORES, help="what is recorded of an image (default: loss)")
    more("--amp", action=argparse.BooleanOptionalAction, help="bfloat16 autocast")
    more("--augment", action=argparse.BooleanOptionalAction, help="random crop and flip")
    more("--device", help="such as cpu or cuda (default: cpu)")
    more("--backend", help="of the engine (default: auto)")
    more("--num-workers", type=int, help="of the loader (default 0: data is in memory)")
    more("--layers", help="that bpas watches: activations, a preset or a pattern of module names")
    more("--fuse", action=argparse.BooleanOptionalAction, help="bpas: measure in the activations")
    more(
        "--resident",
        action=argparse.BooleanOptionalAction,
        help="data on the device, batches made there (default: a DataLoader)",
    )
    add("--threads", type=int, help="of torch (default: all cores; 1 for digits)")
    _add_pictures(parser)
    add(
        "--record",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep scores and kept bits, 1.4 bytes per sample and epoch, for the report",
    )
    add("--resume", action="store_true", help="save after every epoch, and go on from there")
    add("--live", action="store_true", help="a view of the run instead of a bar, by rich")
    add("--limit", type=int, help=argparse.SUPPRESS)


def _add_language(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_language)
    add = parser.add_argument
    add("--data-root", required=True, metavar="DIR", help="the folder that holds gsm8k/")
    add("--out", type=Path, default=Path("runs/language"), metavar="DIR")
    add("--ways", nargs="+", choices=language.WAYS, default=list(language.WAYS))
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, metavar="S", help="train this one seed")
    seeds.add_argument("--seeds", type=int, default=3, metavar="N", help="train seeds 0..N-1")
    add("--limit", type=int, metavar="N", help="first training pairs only")
    add("--test-limit", type=int, metavar="N", help="first test pairs only")
    for name in ("epochs", "batch_size", "length"):
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(language.DEFAULTS, name))
    add("--lr", type=float, default=language.DEFAULTS.lr, help="peak of the cosine schedule")
    add("--prune-ratio", type=float, default=language.DEFAULTS.prune_ratio, metavar="R")
    add("--delta", type=float, default=language.DEFAULTS.delta)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_study)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/study"), metavar="DIR", help="goes on from there")
    add("--data-root", metavar="DIR", help="the folder that holds the data sets' folders")
    add("--model", choices=design.MODELS, default="mlp")
    add("--regimes", nargs="+", metavar="NAME", help=f"of {', '.join(regimes.REGIMES)}")
    add(
        "--rules",
        nargs="+",
        metavar="RULE",
        help=f"of {', '.join(rules.RULES)}; or a call, 'orderdp(keep={{keep}}, pool=0.7)' or "
        "'mymodule:Mine(keep={late_keep})', in which {saved}, {keep}, {late_saved} and "
        "{late_keep} stand for what saves the stated share with or without the first epoch",
    )
    add("--savings", nargs="+", type=float, default=[0.4, 0.7], metavar="S")
    add("--seeds", type=int, default=8, metavar="N", help="of each arm that is tested")
    add("--images", type=int, default=10_000, metavar="N")
    add("--epochs", type=int, default=10)
    add("--batch-size", type=int, default=64)
    add("--rates", nargs="+", type=float, default=[], metavar="LR", help="each arm gets its best")
    add("--workers", type=int, default=1, metavar="W", help="trainings at a time, a thread each")
    add("--minutes", type=float, metavar="M", help="start no training later; 0: the tables alone")
    _add_pictures(parser)


def _study(arguments: argparse.Namespace) -> int:
    given: dict[str, Any] = vars(arguments).copy()
    for name in ("command", "run"):
        given.pop(name)
    drawn = given.pop("pictures")
    for name in ("regimes", "rules", "savings", "rates"):
        given[name] = tuple(given[name] or ())
    options = design.StudyOptions(**given)
    if drawn:
        pictures.require()
    found = study.run(options, _Progress())
    written = [options.out / "study.md"]
    write_bytes(written[0], tables.page(found, f"Study: {options.model}").encode())
    if drawn:
        written.append(options.out / "study.svg")
        figure.draw(written[-1], found)
    done, missing = design.count(found)
    _say(f"\n{tables.render(found)}\n\n{done} trainings done, {missing} known to be missing")
    _say(f"written: {', '.join(str(path) for path in written)}")
    return 0


def _language(arguments: argparse.Namespace) -> int:
    given: dict[str, Any] = vars(arguments).copy()
    seed, seeds = given.pop("seed"), given.pop("seeds")
    for name in ("command", "run"):
        given.pop(name)
    if seed is None and seeds < 1:
        raise ValueError(f"--seeds: expected at least 1, got {seeds}")
    given["seeds"] = tuple(range(seeds)) if seed is None else (seed,)
    given |= {"ways": tuple(given["ways"]), "progress": sys.stderr.isatty()}
    options = language.LanguageOptions(**given)
    found = language.run(options, _Progress())
    _say(f"\n{language.table(found)}\n\nwritten: {options.out / 'language.json'}")
    return 0


# Of the selection: what is cheap, where the training itself is not.
SMALL = {"digits": "mlp", "fashion_mnist": "cnn", "cifar10": "cnn", "cifar100": "cnn"}
TRAIN_FIELDS = (
    "model",
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "scale_lr",
    "weight_decay",
    "label_smoothing",
    "score",
    "amp",
    "augment",
    "device",
    "backend",
    "num_workers",
    "layers",
    "fuse",
    "resident",
)


def _delta_range(text: str) -> tuple[float, float]:
    start, _, end = text.partition(":")
    try:
        return float(start), float(end)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected START:END, got {text!r}") from error


def _train(arguments: argparse.Namespace) -> int:
    given = {
        name: getattr(arguments, name)
        for name in TRAIN_FIELDS
        if getattr(arguments, name) is not None
    }
    progress = sys.stderr.isatty() and not arguments.live
    config = replace(compare.DEFAULTS[arguments.data], progress=progress, **given)
    if arguments.seeds is not None and arguments.seeds < 1:
        raise ValueError(f"--seeds: expected at least 1, got {arguments.seeds}")
    count = arguments.seeds or (3 if arguments.compare else 1)
    seeds = (arguments.seed,) if arguments.seed is not None else tuple(range(count))
    subset: tuple[Path, ...] = tuple(arguments.subset or ())
    if subset and arguments.policy is not None:
        raise ValueError(f"--subset goes with no --policy, got {arguments.policy}")
    policy: str = "subset" if subset else arguments.policy or compare.DEFAULT_POLICY
    out: Path = arguments.out or Path("runs") / f"{arguments.data}-{spec_name(policy)}"
    options = compare.RunOptions(
        data=arguments.data,
        data_root=arguments.data_root,
        out=out,
        train=config,
        policy=policy,
        subset=subset,
        weight_cap=arguments.weight_cap,
        prune_ratio=arguments.prune_ratio,
        delta=arguments.delta,
        sampling=arguments.sampling,
        seeds=seeds,
        compare=arguments.compare,
        target_savings=arguments.target_savings,
        limit=arguments.limit,
        delta_ranges=tuple(arguments.delta_range or ()),
        noise_floor=arguments.noise_floor,
        shuffle_batches=arguments.shuffle_batches,
        record=arguments.record,
    )
    _check_device(config.device, config.backend)
    optimizers.require(config.optimizer)
    if arguments.live:
        terminal_view.require()
    if arguments.pictures:
        pictures.require()
    with _threads(arguments.threads, arguments.data), ranks.joined(config.device) as device:
        options = replace(options, train=replace(config, device=device))
        compare.run(
            options,
            _Progress(),
            lambda run: _finish(out, run, drawn=arguments.pictures),
            resume=arguments.resume,
            watch=terminal_view.live if arguments.live else None,
        )
    return 0


@contextmanager
def _threads(threads: int | None, data: str) -> Generator[None, None, None]:
    """Give torch its threads for a while."""
    if threads is None:
        # A batch of digits is too small to share: two threads only wait for each other.
        threads = 1 if data == "digits" else environment.cores()
    if threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_device(device: str, backend: str) -> None:
    """Refuse a device or a backend that is not here, before any file is read."""
    try:
        kind = torch.device(device).type
        if kind == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch finds no CUDA device here")
        backends.resolve(backend, kind)
    except RuntimeError as error:
        raise ValueError(f"--device {device} --backend {backend}: {error}") from error


def _finish(out: Path, run: files.Run, *, drawn: bool) -> None:
    """Write and print what a run found, its page last."""
    written = _write(out, run, drawn=drawn)
    page.write_page([(out, run)], out / files.PAGE)
    _print(run, written)
    _say(f"report: {out / files.PAGE}")


def _write(out: Path, run: files.Run, *, drawn: bool) -> list[Path]:
    files.write_report(out, run)
    pngs = pictures.draw(out, run) if drawn else []
    return [out / files.TABLE, out / files.SUMMARY, *pngs]


def _print(run: files.Run, written: list[Path]) -> None:
    report = run.report
    sentences = "\n".join(report.sentences())
    places = ", ".join(str(path) for path in written)
    _say(f"\n{report.table(markdown=False)}\n\n{sentences}\n\n{FOOTNOTE}\n\nwritten: {places}")


def _report(arguments: argparse.Namespace) -> int:
    folders: list[Path] = arguments.run_dirs
    for folder in folders:
        files.load_run(folder)  # says what is missing before it makes a lock
    names = None if arguments.classes is None else view.class_names(arguments.classes)
    with ExitStack() as owning:
        for folder in dict.fromkeys(path.resolve() for path in folders):
            owning.enter_context(owner.owned(folder))
        runs = [(folder, files.load_run(folder)) for folder in folders]
        written = [_write(folder, run, drawn=arguments.pictures) for folder, run in runs]
        out: Path = arguments.out or folders[0] / files.PAGE
        page.write_page(runs, out, data_root=arguments.data_root, names=names)
    for (_, run), paths in zip(runs, written, strict=True):
        _print(run, paths)
    _say(f"report: {out}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    runs = [(folder, files.load_run(folder)) for folder in arguments.run_dirs]
    _say(results.across([(folder.name, run.report) for folder, run in runs], arguments.markdown))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    facts = diagnostics.info()
    faults: list[str] = []
    if arguments.check:
        facts["check"] = [check.as_dict() for check in selftest.check()]
        faults = [check["name"] for check in facts["check"] if not check["ok"]]
    if arguments.json:
        _say(json.dumps(facts, indent=2))
    else:
        _say(diagnostics.render(facts))
    return 1 if faults else 0


def _inspect(arguments: argparse.Namespace) -> int:
    facts = inspection.inspect_state(arguments.state)
    if arguments.top is None:
        if arguments.data is not None:
            raise ValueError("--data: expected with --top K, which shows samples")
        return _show(facts, as_json=arguments.json)
    found = None
    if arguments.data is not None:
        found = data.load(arguments.data, arguments.data_root, limit=arguments.limit)
    _, buffer = inspection.load_buffer(arguments.state)
    samples = terminal.top_samples(buffer.scores, arguments.top, found)
    if arguments.json:
        return _show({**facts, "top": samples}, as_json=True)
    _show(facts, as_json=False)
    _say("\n" + terminal.laid_out(samples))
    return 0


def _select(arguments: argparse.Namespace) -> int:
    if arguments.state is not None or arguments.keep or arguments.forgetting:
        raise ValueError(
            "select takes no state any more: name a --method and the --data. A state's own scores "
            "go to prune_engine.data.select_subset(engine.scores(), k)"
        )
    if arguments.method is None:
        raise ValueError(f"--method must be given: one of {', '.join(selection.METHODS)}")
    if arguments.count is None and arguments.fraction is None:
        raise ValueError("--fraction or --count must be given")
    names = ("model", "epochs", "batch_size", "lr", "amp", "device")
    given = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    small = {"epochs": selection.EPOCHS, "model": SMALL[arguments.data]}
    config = replace(compare.DEFAULTS[arguments.data], progress=sys.stderr.isatty())
    config = replace(config, **{**small, **given})
    options = selection.SelectOptions(
        method=arguments.method,
        data=arguments.data,
        train=config,
        count=arguments.count,
        fraction=arguments.fraction,
        balance=arguments.balance,
        seed=arguments.seed,
        runs=arguments.runs,
        score=arguments.score,
        beta=arguments.beta,
        data_root=arguments.data_root,
        limit=arguments.limit,
        folder=arguments.features,
        exact=arguments.exact,
    )
    size = arguments.count if arguments.fraction is None else f"{arguments.fraction:g}"
    out: Path = arguments.out or Path(f"{arguments.data}-{arguments.method}-{size}.npy")
    _check_device(config.device, config.backend)
    bar = Bar(arguments.method, 1, config.progress)
    say = _to_stderr if arguments.json else _Progress()
    with _threads(arguments.threads, arguments.data):
        facts = selection.choose(options, out, say, bar.reach)
    bar.close()
    return _show(facts, as_json=arguments.json)


def _to_stderr(line: str) -> None:
    """Say a line where standard output is for JSON."""
    print(line, file=sys.stderr)


def _show(facts: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        _say(json.dumps(facts, indent=2))
    else:
        width = max(len(name) for name in facts)
        _say("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    _check_device(arguments.device, "auto")
    rows = diagnostics.bench(arguments.samples, arguments.batch_size, arguments.device)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'operation':<28}  {'backend':<10}  {'median us':>10}  {'p20':>8}  {'p80':>8}  runs")
    for row in rows:
        print(
            f"{row['operation']:<28}  {row['backend']:<10}  {row['median_us']:>10.1f}  "
            f"{row['p20_us']:>8.1f}  {row['p80_us']:>8.1f}  {row['runs']}"
        )
    print("\nA quick look, with the caches warm; `make bench` measures with baselines.")
    return 0
