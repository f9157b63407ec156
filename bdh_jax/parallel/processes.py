"""How the processes of one run find each other."""

from __future__ import annotations

import re

import jax

from bdh_jax.config import ConfigError, require
from bdh_jax.parallel.devices import check_devices


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
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except ValueError as error:
        raise ConfigError(
            f"mesh.distributed=True: this is no cluster that JAX knows ({error}); name the processes by --{', --'.join(given)}, or set "
            "it to False"
        ) from error
    check_devices()
