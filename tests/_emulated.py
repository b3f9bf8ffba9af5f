# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on a CPU: the sources of ``csrc/cuda``, compiled against ``tests/emulator``."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
LAUNCH = re.compile(r"([\w:]+(?:<[^<>;{}]*>)?)<<<(.*?), 0, stream>>>\((.*?)\);", re.DOTALL)
LIBRARY = "libemulated.so"
REAL = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
FLAGS = (
    "-O2 -std=c++17 -fPIC -ffp-contract=off -fno-strict-aliasing -fno-gnu-unique "
    "-Wno-unknown-pragmas -include cuda_runtime_api.h"
)


def translate(source: str) -> str:
    """Turn ``kernel<<<grid, block, 0, stream>>>(arguments);`` into a call of the emulator."""
    return LAUNCH.sub(r"emulator::launch(\2, [&] { \1(\3); });", source)


def small_grids(source: str) -> str:
    """Let three blocks do everything, so that small inputs already stride."""
    return re.sub(r"(k(?:Max|Histogram)Grid) = [^;]+;", r"\1 = 3;", source)


def run_compiler(words: Iterable[str]) -> None:
    command = [os.environ.get("CXX", "g++"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compile_kernels(folder: Path, edit: Callable[[str], str] = lambda text: text) -> Emulated:
    """Compile every kernel into one library.

    Args:
        folder: an empty folder of its own.
        edit: changes a source first.
    """
    return _compile(folder, edit, [path.stem for path in CSRC.glob("cuda/*.cu")], [])


def compile_once(folder: Path, edit: Callable[[str], str]) -> Emulated:
    """Compile every kernel into a folder, or take what another process has compiled there.

    Args:
        folder: of all processes of these tests, which come one after another.
        edit: as for ``compile_kernels``.
    """
    whole = folder / "emulated"
    with (folder / "emulated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (library := whole / LIBRARY).exists():
            return Emulated(ctypes.CDLL(str(library)), sorted(whole.glob("*.o")))
        whole.mkdir(exist_ok=True)
        return compile_kernels(whole, edit)


def break_kernel(folder: Path, whole: Emulated, name: str, old: str, new: str) -> Emulated:
    """Compile one kernel from sources that are changed on purpose; take the others as they are.

    Args:
        folder: an empty folder of its own.
        whole: what ``compile_kernels`` made.
        name: the kernel's file, such as "compact".
        old: what its sources, or headers of theirs, must hold.
        new: what stands there instead.
    """
    texts = [path.read_text(encoding="utf-8") for path in CSRC.glob("cuda/*.cu*")]
    assert any(old in text for text in texts), "nothing would be broken"
    kept = [path for path in whole.objects if path.stem != name]
    assert len(kept) == len(whole.objects) - 1
    return _compile(folder, lambda text: small_grids(text.replace(old, new)), [name], kept)


def _compile(
    folder: Path, edit: Callable[[str], str], names: list[str], others: list[Path]
) -> Emulated:
    sources = []
    for path in sorted(CSRC.glob("cuda/*.cu*")):
        text = translate(edit(path.read_text(encoding="utf-8")).replace('"../', f'"{CSRC}/'))
        if path.suffix == ".cuh":
            (folder / path.name).write_text(text, encoding="utf-8")
        elif path.stem in names:
            sources.append(folder / f"{path.stem}.cpp")
            sources[-1].write_text(text, encoding="utf-8")
    emulator = ROOT / "tests/emulator"
    if not others:
        sources.append(emulator / "emulator.cpp")
    torch_headers = Path(torch.__file__).parent / "include"
    includes = [f"-I{folder}", f"-I{emulator}", f"-I{CSRC / 'cuda'}", f"-isystem{torch_headers}"]
    objects = [folder / f"{path.stem}.o" for path in sources]
    commands = [
        [*FLAGS.split(), *includes, "-c", str(source), "-o", str(target)]
        for source, target in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(run_compiler, commands))
    # Of a function in several objects the first is linked: that of the changed sources.
    objects += others
    library = folder / LIBRARY
    run_compiler(["-shared", *map(str, objects), "-o", str(library)])
    return Emulated(ctypes.CDLL(str(library)), objects)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _numbers(values: list[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


class Emulated:
    """The operators with the signatures of a backend module, on CPU tensors."""

    def __init__(self, library: ctypes.CDLL, objects: list[Path]) -> None:
        """Wrap the compiled library; the objects are what it was linked from."""
        self._library = library
        self.objects = objects

    def _call(self, name: str, *arguments: Any) -> None:
        words = [ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments]
        words = [ctypes.c_double(a) if isinstance(a, float) else a for a in words]
        words = [_pointer(a) if isinstance(a, Tensor) else a for a in words]
        getattr(self._library, f"emulated_{name}")(*words)
        assert not self._library.emulator_mode_changed(), "the thread's capture mode was restored"
        assert self._library.emulator_strict_launches() == 0, "a launch that may not load a kernel"

    @contextmanager
    def descending(self) -> Iterator[None]:
        """Run threads and blocks from the last to the first."""
        self._library.emulator_descending(1)
        try:
            yield
        finally:
            self._library.emulator_descending(0)

    def observe(self, losses, indices, score, state, advance, /):
        scored = losses if score is None else score
        rescaled = torch.empty_like(losses)
        weights = torch.empty(losses.shape, dtype=torch.float32)
        self._call(
            "observe",
            *(REAL[losses.dtype], losses, REAL[scored.dtype], scored),
            *(int(indices.dtype == torch.int64), indices, losses.numel(), rescaled, weights),
            *(state[0], state[0].numel(), *state[1:], int(advance)),
        )
        return rescaled, weights

    def observe_mean(self, losses, indices, score, state, advance, /):
        scored = losses if score is None else score
        shares = torch.empty_like(losses)
        self._call(
            "observe_mean",
            *(REAL[scored.dtype], scored, int(indices.dtype == torch.int64), indices),
            *(losses.numel(), shares, state[0], state[0].numel(), *state[1:], int(advance)),
        )
        return shares

    def mean_threshold(self, score_sum, /):
        threshold = torch.empty(1, dtype=torch.float32)
        self._call("mean_threshold", score_sum, threshold)
        return threshold

    def plan(
        self,
        records,
        thresholds,
        cuts,
        classes,
        keep_num,
        keep_den,
        unseen,
        seed,
        epoch,
        out,
        first=0,
        /,
    ):
        blocks = -(-records.numel() // 4096)
        offsets = torch.full((blocks + 1,), -1, dtype=torch.int64)
        rows = [_numbers(values) for values in (cuts, classes, keep_num)]
        self._call(
            "plan",
            *(records, records.numel(), thresholds, len(cuts), *rows),
            *(keep_den, unseen, seed, epoch, first, out, offsets),
        )
        return offsets

    def cells(self, records, /):
        counts = torch.full((4096,), -1, dtype=torch.int64)
        self._call("cells", records, records.numel(), counts)
        return counts

    def solve_levels(self, counts, target, least, /):
        top, solution = torch.full((1,), -1).int(), torch.full((2,), -1)
        cut, table = torch.full((256,), -1).int(), torch.full((256,), torch.nan)
        self._call("solve_levels", counts, target, least, top, cut, table, solution)
        return top, cut, table, solution

    def plan_levels(self, records, top, cut, seed, epoch, out, first=0, unseen=None, /):
        offsets = torch.full((-(-records.numel() // 4096) + 1,), -1, dtype=torch.int64)
        self._call(
            "plan_levels",
            *(records, records.numel(), top, top if unseen is None else unseen, cut),
            *(seed, epoch, first, out, offsets),
        )
        return offsets

    def compact(self, weight_class, block_offsets, num_kept, /):
        kept = torch.full((num_kept,), -1, dtype=torch.int32)
        self._call("compact", weight_class, weight_class.numel(), block_offsets, num_kept, kept)
        return kept

    def order(self, kept, positions, start, step, count, seed, epoch, /):
        count = count if positions is None else positions.numel()
        samples = torch.empty(count, dtype=torch.int32)
        self._call(
            "order",
            *(kept, kept.numel(), _pointer(positions), start, step, count, seed, epoch, samples),
        )
        return samples

    def shuffle(self, places, n, inverse, seed, epoch, /):
        result = torch.full_like(places, -7)
        self._call("shuffle", places, places.numel(), n, ctypes.c_int(inverse), seed, epoch, result)
        return result

    def draw(self, indices, seed, epoch, stream, /):
        result = torch.full_like(indices, -7)
        self._call("draw", indices, indices.numel(), seed, epoch, stream, result)
        return result

    def plan_top(self, records, k, cut, seed, epoch, weight_class, /):
        offsets = torch.full((-(-records.numel() // 4096) + 1,), -1, dtype=torch.int64)
        rule = (k, cut, seed, epoch)
        self._call("plan_top", records, records.numel(), *rule, weight_class, offsets)
        return offsets

    def audit(self, records, weight_class, epoch, /):
        result = torch.full((13,), -1, dtype=torch.int64)
        self._call("audit", records, weight_class, records.numel(), epoch, result)
        return result

    def cross_entropy_observe(
        self,
        logits,
        targets,
        indices,
        class_weight,
        smoothing,
        ignore_index,
        kind,
        state,
        advance,
        /,
    ):
        size, num_classes = logits.shape
        real = torch.float64 if logits.dtype == torch.float64 else torch.float32
        rescaled, stats = torch.empty(size, dtype=real), torch.empty(size, 2, dtype=real)
        weights, score = torch.empty(size), torch.empty(size)
        self._call(
            "cross_entropy_observe",
            *(REAL[logits.dtype], logits, num_classes, targets),
            *(int(indices.dtype == torch.int64), indices, size),
            *(_pointer(class_weight), smoothing, ignore_index, kind),
            *(rescaled, weights, score, stats),
            *(state[0], state[0].numel(), *state[1:], int(advance)),
        )
        return rescaled, weights, score, stats

    def cross_entropy_grad(
        self, grad, logits, targets, class_weight, smoothing, ignore_index, weights, stats, /
    ):
        made = torch.empty(logits.shape, dtype=logits.dtype)
        size, num_classes = logits.shape
        self._call(
            "cross_entropy_grad",
            *(REAL[logits.dtype], grad, logits, num_classes, targets, size),
            *(_pointer(class_weight), smoothing, ignore_index, weights, stats, made),
        )
        return made

    def select(self, values, offsets, shares, den, /):
        found = torch.full((len(offsets),), torch.nan)
        self._call(
            "select",
            *(int(values.dtype == torch.int64), values, values.numel(), len(offsets)),
            *(_numbers(offsets), _numbers(shares), den, 0, found, _pointer(None)),
        )
        return found

    def top(self, values, k, /):
        mask = torch.full(values.shape, 7, dtype=torch.uint8)
        self._call(
            "select",
            *(int(values.dtype == torch.int64), values, values.numel(), 0),
            *(_numbers([]), _numbers([]), 1, k, _pointer(None), mask),
        )
        return mask

    def pick(self, values, k, rule, floor, seed, epoch, step, rank, site, /):
        size = min(k, values.numel())
        floor = floor if rule == 2 else 0
        # As long as all elements, so that kernels broken on purpose stay within.
        indices = torch.full(values.shape, -7, dtype=torch.int32)
        weights, eligible = torch.full(values.shape, -7.0), torch.full((1,), -7)
        self._call(
            "pick",
            *(values, values.numel(), size, ctypes.c_int(rule), floor, seed, epoch, step),
            *(rank, site, indices, weights, eligible),
        )
        assert (indices[size:] == -7).all() and (weights[size:] == -7).all(), "written past the end"
        return indices[:size], weights[:size], eligible

    def _table(self, tensors):
        pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
        kinds = (ctypes.c_int * len(tensors))(*(REAL[t.dtype] for t in tensors))
        counts = _numbers([t.numel() for t in tensors])
        return ctypes.c_int(len(tensors)), pointers, counts, kinds

    def moments(self, tensors, sample, /):
        rows = torch.full((len(tensors), 3), -1.0, dtype=torch.float64)
        self._call("moments", *self._table(tensors), sample, rows)
        return rows

    def activation_std(self, tensors, out, slot, unbiased, sample, /):
        self._call(
            "activation_std",
            *(*self._table(tensors), sample, out, _pointer(slot), out.numel()),
            ctypes.c_int(unbiased),
        )

    def relu_moments(self, x, /):
        y, row = torch.full_like(x, -1), torch.empty(3, dtype=torch.float64)
        self._call("relu_moments", x, y, x.numel(), ctypes.c_int(REAL[x.dtype]), row)
        return y, row

    def relu_moments_(self, x, /):
        row = torch.empty(3, dtype=torch.float64)
        self._call("relu_moments", x, x, x.numel(), ctypes.c_int(REAL[x.dtype]), row)
        return row

    def gelu_moments(self, x, tanh, /):
        y, row = torch.full_like(x, -1), torch.empty(3, dtype=torch.float64)
        kinds = ctypes.c_int(REAL[x.dtype]), ctypes.c_int(tanh)
        self._call("gelu_moments", x, y, x.numel(), *kinds, row)
        return y, row
