"""Commands of the package, each in a process of its own as with ``python -m``, but without the seconds that imports take.

A server imports JAX and the package once and forks for every command. It computes nothing itself, so a command starts without
devices, compiled functions or another command's flags. JAX reads its variables of the environment when it is imported, so those are
the server's.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import multiprocessing
import os
import pty
import runpy
import struct
import sys
import tempfile
import termios
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SERVER = multiprocessing.get_context("forkserver")
# No command is among them, since each defines its flags when it runs.
_SERVER.set_forkserver_preload(
    [
        "bdh_jax.commands._dispatch",
        "bdh_jax.analysis.ablations",
        "bdh_jax.analysis.fact_capacity",
        "bdh_jax.analysis.language",
        "bdh_jax.lifelong.sweep",
        "bdh_jax.training.loop",
    ]
)


class Command:
    """``python -m module arguments``, which runs until it is waited for, or sent a signal.

    ``folder`` is where it is started, by default that of the project.
    """

    def __init__(self, module: str, *arguments: object, stdin: bytes = b"", folder: Path = ROOT):
        self._named = f"{module} {arguments}"
        self._folder = tempfile.TemporaryDirectory()
        given, self._output, self._errors = files = [Path(self._folder.name, name) for name in ("stdin", "stdout", "stderr")]
        given.write_bytes(stdin)
        arguments = [str(argument) for argument in arguments]
        # A test that fails before it waits leaves nothing running that the worker would wait for at its end.
        self._process = _SERVER.Process(
            target=_command, args=(files, dict(os.environ), folder, module, arguments), daemon=True
        )
        self._process.start()

    def ended(self) -> bool:
        return not self._process.is_alive()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def errors(self) -> bytes:
        """What it has said so far on standard error."""
        return self._errors.read_bytes() if self._errors.exists() else b""

    def wait(self) -> tuple[int, bytes, bytes]:
        """Its exit status, or minus the signal that killed it, output and errors."""
        self._process.join(300)
        late = self._process.exitcode is None
        if late:
            self._process.kill()
            self._process.join()
        with self._folder:
            status, output, errors = self._process.exitcode, self._output.read_bytes(), self._errors.read_bytes()
        if late:
            raise TimeoutError(f"{self._named} has not ended after 300 s: {errors.decode()}")
        return status, output, errors


def run(module: str, *arguments: object, stdin: bytes = b"", folder: Path = ROOT) -> tuple[int, bytes, bytes]:
    """What ``python -m module arguments`` does in a folder: its exit status, output and errors."""
    return Command(module, *arguments, stdin=stdin, folder=folder).wait()


def run_text(module: str, *arguments: object, folder: Path = ROOT) -> tuple[int, str, str]:
    """The same with output and errors as text."""
    status, output, errors = run(module, *arguments, folder=folder)
    return status, output.decode(), errors.decode()


def run_in_terminal(module: str, *arguments: object, columns: int = 80, folder: Path = ROOT) -> tuple[int, str]:
    """Its exit status, and all that it writes to a terminal that is so many columns wide, control sequences included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    files = [Path(os.ttyname(theirs))] * 3
    arguments = tuple(map(str, arguments))
    process = _SERVER.Process(
        target=_command, args=(files, environment | {"TERM": "xterm-256color"}, folder, module, list(arguments)), daemon=True
    )
    process.start()
    written: list[bytes] = []

    def read() -> None:
        # Nobody holds the other end any more: that is how a terminal ends.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                written.append(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    process.join(300)
    late = process.exitcode is None
    if late:
        process.kill()
        process.join()
    os.close(theirs)
    reader.join()
    os.close(ours)
    output = b"".join(written).decode()
    if late:
        raise TimeoutError(f"{module} {arguments} has not ended after 300 s: {output}")
    return process.exitcode, output


def _command(files: list[Path], environment: dict[str, str], folder: Path, module: str, arguments: list[str]) -> None:
    # What the server has imported stays to the end: a collector that looked through it would copy all of its memory as well.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    os.environ.clear()
    os.environ.update(environment)
    for number, (path, flag) in enumerate(zip(files, (os.O_RDONLY, *2 * [os.O_WRONLY | os.O_CREAT]), strict=True)):
        file = os.open(path, flag)
        os.dup2(file, number)
        os.close(file)
    # Python's own streams are those of the server.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate("rww"))
    sys.stderr.reconfigure(line_buffering=True)
    os.chdir(folder)
    # Where python -m looks first.
    sys.path.insert(0, str(folder))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # A forked process leaves without what is registered for the exit, such as that processes of one run wait for each other there.
        atexit._run_exitfuncs()
