"""Files of pods are opened for somebody without rights: nothing outside of their folder, and nothing but files."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.control.log_opening import UnfitError, open_file_beneath, open_folder, open_folder_beneath


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "volume").mkdir()
    (tmp_path / "outside").write_text("secret")
    descriptor = open_folder(tmp_path / "volume")
    yield descriptor
    os.close(descriptor)


def test_a_file_is_read_through_what_was_opened(folder: int, tmp_path: Path) -> None:
    (tmp_path / "volume" / "a.log").write_text("hello")
    opened = open_file_beneath(folder, "a.log")
    try:
        status = os.fstat(opened.descriptor)
        assert os.pread(opened.descriptor, 10, 0) == b"hello"
        assert (opened.device, opened.inode, opened.size) == (status.st_dev, status.st_ino, 5)
        assert not os.get_inheritable(opened.descriptor)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(opened.descriptor, b"x")
    finally:
        os.close(opened.descriptor)


def test_a_link_out_of_the_volume_is_refused_whatever_it_leads_to(folder: int, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "absolute.log").symlink_to("/etc/passwd")
    (volume / "relative.log").symlink_to("../outside")
    (volume / "within.log").symlink_to("a.log")
    (volume / "magic.log").symlink_to("/proc/self/exe")
    (volume / "a.log").touch()
    for name in ("absolute.log", "relative.log", "within.log", "magic.log"):
        with pytest.raises(UnfitError, match="a symbolic link"):
            open_file_beneath(folder, name)


def test_a_folder_that_is_a_link_is_not_entered(folder: int, tmp_path: Path) -> None:
    (tmp_path / "volume" / "logs").symlink_to("..")
    with pytest.raises(OSError, match="symbolic"):
        open_folder_beneath(folder, "logs")
    with pytest.raises(OSError, match="symbolic"):
        open_file_beneath(folder, "logs/outside")


@pytest.mark.parametrize("path", ["..", "../outside", "/etc", "a/../../outside"])
def test_no_path_leads_out(folder: int, tmp_path: Path, path: str) -> None:
    (tmp_path / "volume" / "a").mkdir()
    with pytest.raises((OSError, UnfitError)):
        open_file_beneath(folder, path)
    with pytest.raises(OSError, match="cross-device"):
        open_folder_beneath(folder, path)


def test_what_is_no_file_is_named_and_never_blocks(folder: int, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    os.mkfifo(volume / "fifo")
    (volume / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(volume / "socket"))
        for name, words in {"fifo": "a FIFO", "folder": "a folder", "socket": "a socket"}.items():
            with pytest.raises(UnfitError, match=words):
                open_file_beneath(folder, name)


def test_a_device_is_not_opened(folder: int, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.fail("devices are made by root alone: run it as root")
    os.mknod(tmp_path / "volume" / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with pytest.raises(UnfitError, match="a device"):
        open_file_beneath(folder, "device")


def test_what_is_exchanged_for_a_link_after_it_was_seen_is_still_the_file(folder: int, tmp_path: Path) -> None:
    """The name is looked up once: what a pod does to it then changes nothing."""
    path = tmp_path / "volume" / "a.log"
    path.write_text("mine")
    opened = open_file_beneath(folder, "a.log")
    try:
        path.unlink()
        path.symlink_to("../outside")
        assert os.pread(opened.descriptor, 10, 0) == b"mine"
    finally:
        os.close(opened.descriptor)
