# SPDX-License-Identifier: Apache-2.0
"""One sitting on a GPU: three calls, each under five minutes and whole without the others.

python bench/sitting.py 1          # clocks, bandwidth, the kernels' tests, the benchmark
python bench/sitting.py 2          # ncu's counters, compute-sanitizer
python bench/sitting.py 3          # capture, torch.compile, NCCL, Triton, a training, old and new
python bench/sitting.py all        # one after another (make gpu)
python bench/sitting.py pack [--old FILE]    # here: what travels, and the calls ready to send
python bench/sitting.py take FOLDER...       # here: what came back, into bench/results/

A call writes call-<n>.json, .md and .log under $OUT (default: build/sitting) after every row, and
prints its table last. Its exit status is 0 where nothing is at fault.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gpu import library, machine, sanitizer, tables, travel
from gpu.calls import CALLS, PARTS, SECONDS
from gpu.ledger import Ledger
from gpu.place import PLACES
from gpu.session import ROOT, Session, say


class Ended(BaseException):
    """The call was ended from outside."""


def ended(number: int, frame: FrameType | None) -> None:
    """A handler of signals: the table is still printed."""
    raise Ended(signal.Signals(number).name)


def parts_of(session: Session, number: int, only: Sequence[str]) -> None:
    """Do the parts of a call, one after another, as far as its time goes."""
    session.ledger.put(*machine.look("at the start"))
    library.prepare(session)
    for part in CALLS[number]:
        if only and part.name not in only:
            continue
        if session.is_over:
            session.ledger.put({"part": "machine", "name": part.name, "value": "not reached"})
            continue
        say(f"{part.name} ({session.spent():.0f} s)")
        # One that was asked for by name has all the time of its call.
        part.run(session, session.seconds if only else part.limit)
    session.ledger.put(*machine.look("at the end"))


def call(number: int, arguments: argparse.Namespace) -> int:
    """Make one call; returns the exit status."""
    folder = (arguments.out or Path(os.environ.get("OUT") or ROOT / "build/sitting")).resolve()
    facts = {"commit": arguments.commit} if arguments.commit else {}
    ledger = Ledger(number, folder, facts)
    session = Session(
        ledger=ledger,
        place=PLACES[arguments.size],
        folder=folder,
        seconds=arguments.seconds or SECONDS[number],
        tests=arguments.tests.resolve(),
        first=arguments.first,
        old=arguments.old and arguments.old.resolve(),
    )
    status, how = 0, "whole"
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, ended)
    try:
        parts_of(session, number, arguments.only)
    except library.NoGpu as error:
        ledger.close(str(error))
        raise
    except library.NoLibrary as error:
        how = str(error)
        ledger.put({"part": "library", "name": "none", "note": how, "fault": how})
    except Ended as error:
        how, status = f"ended by {error}", 128 + signal.Signals[str(error)]
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, signal.SIG_IGN)  # from here on the table is what is left to do
    ledger.close(how)
    print(tables.brief([ledger.document]), end="", flush=True)
    return status or bool(ledger.faulty)


def all_calls(arguments: argparse.Namespace) -> int:
    """Make the three calls in turn, whatever each finds; one that is ended is the last."""
    status = 0
    for number in CALLS:
        status = max(status, call(number, arguments))
        if status > 1:
            break
    return status


def pack(arguments: argparse.Namespace) -> int:
    """Pack what travels and print the calls."""
    for one in travel.pack(ROOT, arguments.old):
        print(json.dumps(one))
    target = ROOT / travel.PACK
    say(f"{travel.PACK}: {target.stat().st_size / 2**20:.1f} MiB")
    return 0


def take(arguments: argparse.Namespace) -> int:
    """Take what came back and print its tables."""
    page = travel.take(arguments.folders, arguments.results)
    print(page.read_text(encoding="utf-8"), end="")
    return 0


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench/sitting.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True)
    for name in (*map(str, CALLS), "all"):
        one = commands.add_parser(name)
        one.add_argument("--size", choices=PLACES, default="full", help="toy: on a CPU, to test it")
        one.add_argument("--out", type=Path, help="default: $OUT, or build/sitting")
        one.add_argument("--seconds", type=float, help="that a call may take")
        one.add_argument("--only", nargs="+", choices=PARTS, default=[], help="only these parts")
        one.add_argument("--tests", type=Path, default=ROOT / "tests", help="folder of the tests")
        one.add_argument(
            "--first", choices=sanitizer.TOOLS, default="memcheck", help="of its tools"
        )
        one.add_argument("--old", type=Path, help="an older _ops.so to compare with")
        one.add_argument("--commit", help="of this tree, where git cannot say it")
        number = int(name) if name.isdecimal() else None
        run = (lambda found, n=number: call(n, found)) if number else all_calls
        one.set_defaults(run=run)
    two = commands.add_parser("pack", help="make the archive of what travels; print the calls")
    two.add_argument("--old", type=Path, help="an older _ops.so to take along")
    two.set_defaults(run=pack)
    three = commands.add_parser("take", help="results into bench/results/, with their tables")
    three.add_argument("folders", type=Path, nargs="+")
    three.add_argument("--results", type=Path, default=ROOT / "bench/results")
    three.set_defaults(run=take)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    arguments = parsed(argv)
    try:
        status: int = arguments.run(arguments)
    except (travel.NotReady, library.NoGpu) as error:
        print(error, file=sys.stderr)
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
