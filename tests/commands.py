"""Commands of the package, each in a process of its own as with ``python -m``, but without the seconds that imports take.

A server imports JAX and the package once and forks for every command. It computes nothing itself, so a command starts without
devices, compiled functions or another command's flags. JAX reads its variables of the environment when it is imported, so those are
the server's.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SERVER = multiprocessing.get_context("forkserver")
# No command is among them, since each defines its flags when it runs.
_SERVER.set_forkserver_preload(
    [
        "bdh_jax.cli",
        "bdh_jax.evaluation.ablations",
        "bdh_jax.evaluation.capacity",
        "bdh_jax.evaluation.language",
        "bdh_jax.evaluation.lifelong_sweep",
        "bdh_jax.training.loop",
    ]
)


def run(module: str, *arguments: object, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """What ``python -m module arguments`` does in the folder of the project: its exit status, output and errors."""
    with tempfile.TemporaryDirectory() as folder:
        given, output, errors = files = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        given.write_bytes(stdin)
        process = _SERVER.Process(target=_command, args=(files, dict(os.environ), module, [str(a) for a in arguments]))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{module} {arguments} has not ended after 300 s: {errors.read_bytes().decode()}")
        return process.exitcode, output.read_bytes(), errors.read_bytes()


def run_text(module: str, *arguments: object) -> tuple[int, str, str]:
    """The same with output and errors as text."""
    status, output, errors = run(module, *arguments)
    return status, output.decode(), errors.decode()


def _command(files: list[Path], environment: dict[str, str], module: str, arguments: list[str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, (path, flag) in enumerate(zip(files, (os.O_RDONLY, *2 * [os.O_WRONLY | os.O_CREAT]), strict=True)):
        file = os.open(path, flag)
        os.dup2(file, number)
        os.close(file)
    # Python's own streams are those of the server.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate("rww"))
    sys.stderr.reconfigure(line_buffering=True)
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
