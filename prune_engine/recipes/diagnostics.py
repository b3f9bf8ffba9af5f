# SPDX-License-Identifier: Apache-2.0
"""What ``prune-engine info`` and ``bench`` find out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from prune_engine import backends, ops
from prune_engine.recipes import environment
from prune_engine.types import INT64_MAX, Band, Rule, weight_table


def info() -> dict[str, Any]:
    """Versions, hardware and backends, ready for JSON."""
    rows = [{**asdict(row), "devices": list(row.devices)} for row in backends.describe()]
    return {**environment.describe(), "backends": rows}


def render(facts: dict[str, Any]) -> str:
    """Lay out :func:`info` (and a check, if there is one) for a terminal.

    Args:
        facts: of :func:`info`; an entry ``"check"`` is a list of :meth:`Check.as_dict`.

    Returns:
        Lines, without a trailing newline.
    """
    lines = [f"{name:<16} {found or 'not installed'}" for name, found in facts["versions"].items()]
    lines.append(f"{'commit':<16} {facts['git_commit'] or 'not a checkout'}")
    lines += [f"{name:<16} {_words(value)}" for name, value in facts["hardware"].items()]
    lines += ["", "backends"]
    for row in facts["backends"]:
        state = "yes" if row["available"] else "no "
        lines.append(f"  {row['name']:<10} {state}  {', '.join(row['devices'])}: {row['reason']}")
    if "check" in facts:
        lines += ["", "check against the reference"]
        for check in facts["check"]:
            lines.append(
                f"  {'ok   ' if check['ok'] else 'FAULT'} {check['name']}{check['detail']}"
            )
        if not facts["check"]:
            lines.append("  no other backend is available here")
    return "\n".join(lines)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value) or "none"  # pyright: ignore
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Check:
    """One comparison with the reference.

    Args:
        name: backend, device and operator.
        ok: every bit agrees.
        detail: empty, or what differs.
    """

    name: str
    ok: bool
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def check() -> list[Check]:
    """Compare every available backend with the reference, on every device it serves.

    Returns:
        One entry per backend, device and operator; empty if only the reference is available.
    """
    return [
        result
        for row in backends.describe()
        if row.available and row.name != "reference"
        for device in row.devices
        for result in parity(row.name, torch.device(device))
    ]


def parity(backend: str, device: torch.device, operators: Any = ops) -> list[Check]:
    """Run two epochs of a small problem on a backend and on the reference, and compare bits.

    Args:
        backend: its name.
        device: where its tensors live; the reference runs on the CPU.
        operators: what is called for it; something with the functions of ``prune_engine.ops``.

    Returns:
        One entry per operator and epoch. An operator that raises is a fault, and the rest is not
        tried: it would start from other inputs.
    """
    checks: list[Check] = []
    wanted = _walk(ops, "reference", torch.device("cpu"))
    got = _walk(operators, backend, device)
    for label, expected in wanted:
        where = f"{backend} on {device}: {label}"
        try:
            _, actual = next(got)
        except Exception as error:
            # Whatever a broken backend raises is the finding, reported as such.
            checks.append(Check(where, False, f": raised {type(error).__name__}: {error}"))
            break
        detail = _difference(expected, actual)
        checks.append(Check(where, not detail, detail))
    return checks


def _difference(expected: tuple[Tensor, ...], actual: tuple[Tensor, ...]) -> str:
    """Empty if all values agree; nan (a dropped sample's infinite loss) agrees with nan."""
    wrong = 0
    for want, have in zip(expected, actual, strict=True):
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            return f": expected {want.dtype} {tuple(want.shape)}, got {have.dtype} {have.shape}"
        have = have.cpu()
        wrong += int(((want != have) & ((want == want) | (have == have))).sum())
    total = sum(want.numel() for want in expected)
    return f": {wrong} of {total} elements differ" if wrong else ""


def _walk(
    operators: Any, backend: str, device: torch.device, num_samples: int = 20_000
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Yield (label, tensors) for every operator of two epochs of fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    state = _state(num_samples, device)
    for epoch in range(2):
        losses = torch.randn(num_samples, generator=generator).exp()
        losses[::1000] = float("inf")
        indices = torch.randperm(num_samples, generator=generator)
        outputs: list[Tensor] = []
        for start in range(0, num_samples, 4096):
            part = slice(start, start + 4096)
            outputs += operators.observe(
                losses[part].to(device),
                indices[part].to(device),
                epoch=epoch,
                backend=backend,
                **state,
            )
        records, score_sum = state["records"], state["score_sum"]
        # Copies: the next epoch changes the state in place.
        recorded = (records.clone(), score_sum.clone(), state["counters"].clone())
        yield f"observe, epoch {epoch}", (*outputs, *recorded)
        threshold = operators.mean_threshold(score_sum, backend=backend)
        yield f"mean_threshold, epoch {epoch}", (threshold,)
        weight_class, offsets = operators.plan(
            records, _rule(threshold), seed=7, epoch=epoch + 1, backend=backend
        )
        yield f"plan, epoch {epoch}", (weight_class, offsets)
        kept = operators.compact(weight_class, offsets, int(offsets[-1]), backend=backend)
        yield f"compact, epoch {epoch}", (kept,)
        drawn = operators.order(kept, range(len(kept)), seed=7, epoch=epoch + 1, backend=backend)
        yield f"order, epoch {epoch}", (drawn,)
        found = operators.audit(records, weight_class, epoch=epoch, backend=backend)
        yield f"audit, epoch {epoch}", (found,)
        state["weight_class"] = weight_class


def _state(num_samples: int, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a score buffer before its first epoch."""
    return {
        "records": torch.zeros(num_samples, dtype=torch.int64, device=device),
        "score_sum": torch.zeros(3, dtype=torch.int64, device=device),
        "counters": torch.tensor([0, 0, 0, INT64_MAX], device=device),
        "weight_class": torch.ones(num_samples, dtype=torch.uint8, device=device),
        "weight_table": torch.tensor(weight_table(2.0), device=device),
    }


def _rule(threshold: Tensor) -> Rule:
    """Half of those below the threshold are dropped, the others weigh 2."""
    return Rule(threshold, (Band(32768, 2), Band(0, 1)), weight_table(2.0))


def bench(num_samples: int, batch_size: int, device: str) -> list[dict[str, Any]]:
    """Time ``observe`` and ``plan`` of every backend that serves a device.

    Args:
        num_samples: N, at least 1.
        batch_size: B, at least 1.
        device: such as ``"cpu"``.

    Returns:
        One row per operation and backend: median, p20 and p80 in microseconds, and n.

    Raises:
        ValueError: a number below 1.
    """
    for name, value in (("samples", num_samples), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    target = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    state = _state(num_samples, target)
    scores = torch.randint(0, 2**31, (num_samples,), generator=generator).to(target)
    state["records"] = scores | (1 << 32)
    losses = torch.rand(batch_size, generator=generator).to(target)
    indices = torch.randint(num_samples, (batch_size,), generator=generator).to(target)
    rule = _rule(torch.tensor([0.0], device=target))  # half of the keys are below
    epoch = torch.ones(1, dtype=torch.int64, device=target)
    rows: list[dict[str, Any]] = []
    for row in backends.describe():
        if not row.available or not {target.type, "any"} & set(row.devices):
            continue

        def observe(backend: str = row.name) -> object:
            return ops.observe(losses, indices, epoch=epoch, backend=backend, **state)

        def plan(backend: str = row.name) -> object:
            decided, offsets = ops.plan(state["records"], rule, seed=7, epoch=1, backend=backend)
            return ops.compact(decided, offsets, int(offsets[-1]), backend=backend)

        for label, call, runs in (
            (f"observe, B = {batch_size}", observe, 200),
            (f"plan, N = {num_samples:,}", plan, 10),
        ):
            rows.append({"operation": label, "backend": row.name, **_time(call, runs, target)})
    return rows


def _time(call: Callable[[], object], runs: int, device: torch.device) -> dict[str, float | int]:
    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e6 * (time.perf_counter() - start)

    once()  # the first call pays for allocation
    times = sorted(once() for _ in range(runs))
    return {
        "median_us": times[runs // 2],
        "p20_us": times[runs // 5],
        "p80_us": times[runs * 4 // 5],
        "runs": runs,
    }
