"""A process is told from all others, and judged only where it can be looked at."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softlabels.core import processes
from softlabels.core.processes import Process, is_alive, this_process

FORK = multiprocessing.get_context("fork")


def test_a_process_is_spelled_and_read_again():
    for process in (
        this_process(),
        Process(host="node-17", pid=4),
        Process(host="a.b-0a1b2c3d-x", pid=7, boot="83d349a0ac45", space="4026531836", started="9"),
    ):
        assert Process.parse(str(process)) == process
    for text in ("", "node-17", "node-x.1.2.3", "node-83d3.1.2", "-.."):
        assert Process.parse(text) is None


def test_this_process_lives_and_a_fork_is_another():
    me = this_process()
    assert is_alive(me)
    queue = FORK.Queue()
    child = FORK.Process(target=lambda: queue.put(this_process()))
    child.start()
    there = queue.get(timeout=30)
    child.join()
    assert (there.host, there.boot, there.space) == (me.host, me.boot, me.space)
    assert there != me
    assert is_alive(there) is False


def test_a_process_that_ended_is_dead_though_nobody_asked_for_its_status():
    child = subprocess.Popen([sys.executable, "-c", ""])
    there = dataclasses.replace(this_process(), pid=child.pid, started="")
    while Path(f"/proc/{child.pid}/stat").exists() and is_alive(there):
        time.sleep(0.01)
    assert is_alive(there) is False
    child.wait()


def test_a_pid_that_is_used_again_is_another_process():
    parent = dataclasses.replace(this_process(), pid=os.getppid(), started="")
    assert is_alive(parent)
    if processes._stat(os.getppid())[1]:
        assert is_alive(dataclasses.replace(parent, started="1")) is False


def test_a_process_of_another_user_is_alive(monkeypatch):
    def kill(_pid, _signal):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "kill", kill)
    assert is_alive(dataclasses.replace(this_process(), pid=os.getppid(), started=""))


@pytest.mark.parametrize("field", ["host", "boot", "space"])
def test_what_cannot_be_looked_at_from_here_is_not_judged(field):
    other = dataclasses.replace(this_process(), pid=999_999)
    assert is_alive(other) is False
    assert is_alive(dataclasses.replace(other, **{field: "7"})) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's")
def test_where_proc_is_not_of_this_namespace_nothing_is_judged(monkeypatch, tmp_path):
    (tmp_path / "self").symlink_to("1")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    processes._named.cache_clear()
    try:
        me = this_process()
        assert (me.boot, me.space, me.started) == ("", "", "")
        assert is_alive(dataclasses.replace(me, pid=999_999)) is None
    finally:
        processes._named.cache_clear()


@pytest.mark.parametrize("pid", [0, -1, -(2**70)])
def test_no_process_has_such_a_number(pid):
    me = this_process()
    assert is_alive(Process(me.host, pid, me.boot, me.space, me.started)) is None
