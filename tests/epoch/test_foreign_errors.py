# SPDX-License-Identifier: Apache-2.0
"""Errors of disks, file systems and torch, in the kinds and words that are promised."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from _runs import infobatch

import prune_engine as pe

SYNC, OPEN = os.fsync, os.open


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def syncing(code: int) -> Any:
    """Return an fsync that fails for folders."""

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        SYNC(descriptor)

    return sync


@pytest.mark.parametrize(
    "code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES], ids=errno.errorcode.get
)
def test_a_folder_that_cannot_be_flushed_takes_the_file_all_the_same(tmp_path, monkeypatch, code):
    engine, file = infobatch(20), tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", syncing(code))
        pe.save_state(engine, file, extra={"step": 1})
    assert pe.load_state(infobatch(20), file) == {"step": 1}
    assert os.listdir(tmp_path) == ["run.pt"]


def test_control_a_disk_that_fails_while_it_flushes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", syncing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        pe.save_state(infobatch(20), tmp_path / "run.pt")


def test_a_folder_that_may_not_be_listed_takes_the_file_all_the_same(tmp_path, monkeypatch):
    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return OPEN(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        pe.save_state(infobatch(20), tmp_path / "run.pt")
    assert pe.load_state(infobatch(20), tmp_path / "run.pt") == {}


def test_a_full_disk_is_an_os_error_and_the_file_before_stays(tmp_path):
    small, large, file = infobatch(20), infobatch(200_000), tmp_path / "run.pt"
    pe.save_state(small, file, extra={"step": 1})
    with largest_file(100_000), pytest.raises(OSError) as caught:
        pe.save_state(large, file)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["run.pt"]
    assert pe.load_state(infobatch(20), file) == {"step": 1}
    pe.save_state(large, file)  # control: with room it is written


def test_what_cannot_be_pickled_is_named_as_extra(tmp_path):
    with pytest.raises(ValueError, match="extra must be tensors and plain data"):
        pe.save_state(infobatch(20), tmp_path / "run.pt", extra={"schedule": lambda step: step})
    with pytest.raises(TypeError, match="extra must be a mapping, got list"):
        pe.save_state(infobatch(20), tmp_path / "run.pt", extra=[1])  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_read_is_not_called_torn(tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    pe.save_state(infobatch(20), file)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    with monkeypatch.context() as patch, pytest.raises(PermissionError, match=r"run\.pt"):
        patch.setattr("zipfile.ZipFile", refuse)
        pe.load_state(infobatch(20), file)
    file.write_bytes(b"PK\3\4 and no more")
    with pytest.raises(pe.StateMismatchError, match="is torn"):  # control
        pe.load_state(infobatch(20), file)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", 2.5], ids=repr)
def test_a_device_that_torch_does_not_know_is_named(device):
    with pytest.raises(ValueError, match="device must name a device of torch, got"):
        pe.PruneEngine(4, pe.KeepAll(), num_epochs=1, device=device)
    assert pe.PruneEngine(4, pe.KeepAll(), num_epochs=1, device=torch.device("cpu")).epoch == 0


def test_no_folder_is_the_systems_own_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        pe.save_state(infobatch(20), tmp_path / "none" / "run.pt")
