"""Told to stop, a command ends with 128 + the signal's number and one line, whatever it is busy with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.processes import ROOT, run_text

STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138}


def _import(tmp_path, module: str, signals: list[str], ignored: str = "") -> subprocess.CompletedProcess[str]:
    """Start a command where the import of JAX, which takes seconds, brings signals."""
    (tmp_path / "jax.py").write_text(
        f"import signal\nfor name in {signals}:\n    signal.raise_signal(getattr(signal, name))\nraise SystemExit(77)\n"
    )

    def ignore() -> None:
        if ignored:
            signal.signal(getattr(signal, ignored), signal.SIG_IGN)

    return subprocess.run(
        [sys.executable, "-m", module, "train"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        preexec_fn=ignore,
    )


@pytest.mark.parametrize("module", ["bdh_jax", "bdh_jax.main"])
@pytest.mark.parametrize("name", STATUS)
def test_signals_are_heard_before_what_takes_seconds_to_import(tmp_path, module, name):
    ended = _import(tmp_path, module, [name])
    shown = "Ctrl-C" if name == "SIGINT" else name
    assert (ended.returncode, ended.stderr) == (STATUS[name], f"error: {shown}: aborted; what was not yet saved is lost\n")


def test_nohup_is_respected(tmp_path):
    assert _import(tmp_path, "bdh_jax", ["SIGHUP", "SIGTERM"], ignored="SIGHUP").returncode == 143


COMMAND = '''"""A command that is told to stop."""
import ctypes, os, signal, sys, threading, time
from types import SimpleNamespace
from bdh_jax.commands import _process
from bdh_jax.runs import signals

HOW, NAME = sys.argv[1:]
NUMBER = getattr(signal, NAME)

def unwinds():
    try:
        signal.raise_signal(NUMBER)
    finally:
        print("closed")

def lost_in_a_callback():
    class Collected:
        def __del__(self):
            signal.raise_signal(NUMBER)
    Collected()
    time.sleep(60)

def swallowed():
    signals.GRACE = 0.1
    try:
        signal.raise_signal(NUMBER)
    except BaseException:
        time.sleep(60)

def made_another_error():
    try:
        signal.raise_signal(NUMBER)
    except BaseException as error:
        raise RuntimeError("INTERNAL") from error

def deaf(twice):
    """In a C function that no signal interrupts, as XLA's compiler."""
    def tell():
        for _ in range(1 + twice):
            time.sleep(0.3)
            os.kill(os.getpid(), NUMBER)
    threading.Thread(target=tell).start()
    mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    lock(mutex)

def compiler_deaf():
    signals.GRACE = 0.1
    deaf(twice=False)

def compiler_deaf_twice():
    deaf(twice=True)

def compiles():
    import jax
    import jax.numpy as jnp
    def layers(x):
        for number in range(300):
            x = jnp.sort(jnp.tanh(x @ x + number), axis=number % 2)
        return x
    lowered = jax.jit(layers).lower(jnp.ones((64, 64)))
    started = threading.Event()
    threading.Thread(target=lambda: (started.set(), lowered.compile()), daemon=True).start()
    started.wait()
    time.sleep(0.3)
    signal.raise_signal(NUMBER)

def child_is_told():
    signals.GRACE = 0.1
    child = os.fork()
    if child == 0:
        time.sleep(60)
    os.kill(child, NUMBER)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -NUMBER
    time.sleep(0.5)

_process.run(SimpleNamespace(__doc__="", __name__="told", main=lambda argv: globals()[HOW]()), ["told"])
'''


def _told(tmp_path, how: str, name: str = "SIGTERM") -> tuple[int, str, str]:
    (tmp_path / "told.py").write_text(COMMAND)
    return run_text("told", how, name, folder=tmp_path)


@pytest.mark.parametrize("name", STATUS)
def test_a_command_closes_what_is_open(tmp_path, name):
    shown = "Ctrl-C" if name == "SIGINT" else name
    told = _told(tmp_path, "unwinds", name)
    assert told == (STATUS[name], "closed\n", f"error: {shown}: aborted; what was not yet saved is lost\n")


@pytest.mark.parametrize("how", ["lost_in_a_callback", "swallowed", "made_another_error", "compiler_deaf"])
def test_a_command_ends_also_when_a_library_loses_the_exception(tmp_path, how):
    assert _told(tmp_path, how) == (143, "", "error: SIGTERM: aborted; what was not yet saved is lost\n")


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    told = _told(tmp_path, "compiler_deaf_twice", "SIGINT")
    assert told == (130, "", "error: Ctrl-C: aborted at once; what was not yet saved is lost\n")


def test_a_thread_that_compiles_does_not_outlive_what_it_uses(tmp_path):
    """It would crash as libraries are taken down at the end, which a process of `tests.processes` leaves out."""
    (tmp_path / "told.py").write_text(COMMAND)
    ended = subprocess.run(
        [sys.executable, "told.py", "compiles", "SIGINT"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (130, "error: Ctrl-C: aborted; what was not yet saved is lost\n")


def test_what_a_forked_process_is_told_is_not_told_to_its_parent(tmp_path):
    status, _, errors = _told(tmp_path, "child_is_told")
    assert status == 0, errors
