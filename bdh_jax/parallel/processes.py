"""How the processes of one run find each other, and notice that one of them is gone."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# What keeps numbers of all processes in one place has no public name; Orbax uses it as well.
from jax._src import distributed

from bdh_jax.config import ConfigError, require
from bdh_jax.parallel.devices import check_devices

BEAT = 2.0
"""Seconds from one sign of life to the next."""
PATIENCE = 20.0
"""Seconds without one after which a process counts as gone."""
_READS = 8
"""How many times something is looked for that others do within a second or two."""
_HEARTBEAT = 50
"""Seconds after which JAX's own service ends all processes without a name: later than we do."""
_FOR_EVER = 10**9
"""Milliseconds: what waits so long is ended by :func:`watched`."""
_ALIVE, _GONE, _FAILED, _DONE = "bdh_jax/alive", "bdh_jax/gone", "bdh_jax/failed", "done"


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes of this run, and start JAX on all their devices.

    Slurm, Open MPI, a Cloud TPU slice and GKE's TPU pods are found by ``jax.distributed`` from the environment; anywhere else all three
    arguments say it.

    Args:
      coordinator: ``host:port`` of the process with id 0, the same everywhere.
      num_processes: how many there are.
      process_id: of this one, 0 … num_processes − 1.

    Raises:
      ConfigError: if some of the three are missing or out of range, if there is no cluster, or if the others do not answer.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ConfigError(
            f"{' and '.join(missing)} missing: a cluster is found by itself, or all of --{', --'.join(given)} say it"
        )
    if coordinator is not None and num_processes is not None and process_id is not None:
        require(
            re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):[0-9]{1,5}", coordinator) is not None,
            f"--coordinator={coordinator} must be HOST:PORT of the process with --process_id=0, such as 10.0.0.2:8476",
        )
        require(num_processes >= 1, f"--num_processes={num_processes} must be at least 1")
        require(
            0 <= process_id < num_processes,
            f"--process_id={process_id} must lie in 0 … {num_processes - 1}: there are --num_processes={num_processes}",
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT)
    except ValueError as error:
        raise ConfigError(
            f"mesh.distributed=True: this is no cluster that JAX knows ({error}); name the processes by --{', --'.join(given)}, or set "
            "it to False"
        ) from error
    check_devices()


@contextlib.contextmanager
def watched(gone: Callable[[str], None]) -> Iterator[None]:
    """Tell the others that this process lives while the block runs, and notice when one of them does not.

    A collective operation waits for ever for a process that is gone, or fails with a word of the network's. So a thread looks, and an
    error of JAX in the block waits for what it finds. Process 0 keeps the signs of life: if it is gone, JAX aborts the others at once.
    A process that an error ends says so: what all meet ends all alike, and who still runs a while later never will meet it.

    Args:
      gone: called in another thread with what is gone, such as "process 3 on host b"; it ends the process.
    """
    if jax.process_count() == 1:
        yield
        return
    client: Any = distributed.global_state.client
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(client, over, gone), name="processes", daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            client.key_value_set(f"{_FAILED}/{jax.process_index()}", _who(jax.process_index(), socket.gethostname()))
        if isinstance(error, Exception) and not type(error).__module__.startswith("bdh_jax."):
            thread.join(PATIENCE + _READS * BEAT)
        raise
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(Exception):
            _say(client, _DONE)


def gather(name: str, text: str) -> list[str]:
    """What every process says, in process 0; nothing in the others, which do not wait.

    By way of the process that keeps them together, not of devices: a thread may call it while another computes.

    Args:
      name: the same in all processes, and never used before.
      text: what this one says.
    """
    client: Any = distributed.global_state.client
    keys = [f"bdh_jax/{name}/{process}" for process in range(jax.process_count())]
    client.key_value_set(keys[jax.process_index()], text)
    if jax.process_index() != 0:
        return []
    found = [client.blocking_key_value_get(key, _FOR_EVER) for key in keys]
    for key in keys:
        client.key_value_delete(key)
    return found


def broadcast(name: str, text: str | None) -> str:
    """What process 0 says; the others wait for it. As :func:`gather`, by no device.

    Args:
      name: the same in all processes, and never used before.
      text: what process 0 says; None in the others.
    """
    client: Any = distributed.global_state.client
    if text is not None:
        client.key_value_set(f"bdh_jax/{name}", text)
        return text
    return client.blocking_key_value_get(f"bdh_jax/{name}", _FOR_EVER)


def _say(client: Any, what: str) -> None:
    client.key_value_set(f"{_ALIVE}/{jax.process_index()}", f"{socket.gethostname()} {what}", allow_overwrite=True)


def _watch(client: Any, over: threading.Event, gone: Callable[[str], None]) -> None:
    seen: dict[str, tuple[str, float]] = {}
    beat, failed_since = 0, math.inf
    while not over.wait(BEAT):
        beat += 1
        try:
            _say(client, str(beat))
            if jax.process_index() == 0:
                for who in _silent(client, seen):
                    client.key_value_set(f"{_GONE}/0", who, allow_overwrite=True)
            found, failed = _said(client, _GONE), _said(client, _FAILED)
        except Exception:  # of the service, of which JAX documents none: that it cannot be asked, JAX notices as well
            continue
        if failed is not None:
            failed_since = min(failed_since, time.monotonic())
            if time.monotonic() - failed_since > PATIENCE:
                found = found or failed
        if found is not None:
            with contextlib.suppress(Exception):
                _say(client, _DONE)
            if jax.process_index() == 0:
                # The others read it here before this process ends, which aborts them.
                _wait_for_others(client, seen)
            gone(found)


def _wait_for_others(client: Any, seen: dict[str, tuple[str, float]]) -> None:
    """Until all that live have read what is gone."""
    for _ in range(_READS):
        silent = len(list(_silent(client, seen)))
        done = sum(what == _DONE for what, _ in seen.values())
        if done + silent == len(seen):
            return
        time.sleep(BEAT / 2)


def _said(client: Any, what: str) -> str | None:
    """Which process process 0 found gone, or which one says that it failed."""
    return next((value for _, value in client.key_value_dir_get(what)), None)


def _who(process: int | str, host: str) -> str:
    return f"process {process} on host {host}"


def _silent(client: Any, seen: dict[str, tuple[str, float]]) -> Iterator[str]:
    """Processes that gave no sign of life for too long. ``seen`` is what each said last, and when that was."""
    now = time.monotonic()
    for key, value in client.key_value_dir_get(_ALIVE):
        process, (host, _, what) = key.rpartition("/")[2], value.partition(" ")
        said, since = seen.get(process, ("", now))
        seen[process] = (what, now if what != said else since)
        if what != _DONE and now - seen[process][1] > PATIENCE:
            yield _who(process, host)
