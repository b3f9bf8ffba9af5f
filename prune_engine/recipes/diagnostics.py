# SPDX-License-Identifier: Apache-2.0
"""What ``prune-engine info`` and ``bench`` find out; the self-test is in ``selftest``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from prune_engine import backends, ops
from prune_engine.backends import surroundings
from prune_engine.recipes import environment, selftest


def info(read: Callable[[], surroundings.Surroundings] = surroundings.read) -> dict[str, Any]:
    """Versions, hardware, backends and what does not fit together, ready for JSON.

    Args:
        read: looks at the surroundings; a test passes others.

    Returns:
        The facts by name.
    """
    rows = [{**asdict(row), "devices": list(row.devices)} for row in backends.describe()]
    found = {"build": surroundings.build(), "backends": rows}
    return {**environment.describe(), **found, "mismatches": surroundings.mismatches(read())}


def render(facts: dict[str, Any]) -> str:
    """Lay out :func:`info` (and a check, if there is one) for a terminal.

    Args:
        facts: of :func:`info`; an entry ``"check"`` is a list of ``selftest.Check.as_dict``.

    Returns:
        Lines, without a trailing newline.
    """
    lines = [f"{name:<16} {found or 'not installed'}" for name, found in facts["versions"].items()]
    lines.append(f"{'commit':<16} {facts['git_commit'] or 'not a checkout'}")
    lines += [f"{name:<16} {_words(value)}" for name, value in facts["hardware"].items()]
    lines.append(f"{'built with':<16} {_build(facts['build'])}")
    lines += ["", "backends"]
    for row in facts["backends"]:
        state = "yes" if row["available"] else "no "
        lines.append(f"  {row['name']:<10} {state}  {', '.join(row['devices'])}: {row['reason']}")
    if facts["mismatches"]:
        lines += ["", "what does not fit here", *(f"  {line}" for line in facts["mismatches"])]
    if "check" in facts:
        lines += ["", "check against the reference"]
        for check in facts["check"]:
            lines.append(
                f"  {'ok   ' if check['ok'] else 'FAULT'} {check['name']}{check['detail']}"
            )
        if not facts["check"]:
            lines.append("  no other backend is available here")
    return "\n".join(lines)


def _build(built: dict[str, Any]) -> str:
    if not built:
        return "not recorded"
    cuda = f"CUDA {built['cuda']} for {', '.join(built['cuda_archs'])}"
    parts = [built["compiler"], f"torch headers {built['torch_headers']}"]
    parts.append(cuda if built["cuda"] else "no CUDA")
    parts.append(f"pybind11 {built['pybind11']}" if built["pybind11"] else "no NumPy module")
    return "; ".join(parts)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value) or "none"  # pyright: ignore
    return "none" if value is None else str(value)


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
    state = selftest.state(num_samples, target)
    scores = torch.randint(0, 2**31, (num_samples,), generator=generator).to(target)
    state["records"] = scores | (1 << 32)
    losses = torch.rand(batch_size, generator=generator).to(target)
    indices = torch.randint(num_samples, (batch_size,), generator=generator).to(target)
    rule = selftest.mean_rule(torch.tensor([0.0], device=target))  # half of the keys are below
    epoch = torch.ones(1, dtype=torch.int64, device=target)
    rows: list[dict[str, Any]] = []
    for row in backends.describe():
        if not row.available or not {target.type, "any"} & set(row.devices):
            continue

        def observe(backend: str = row.name) -> object:
            batch = losses, indices
            return ops.observe(*batch, epoch=epoch, advance=True, backend=backend, **state)

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
