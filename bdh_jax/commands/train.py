"""Train one experiment: ``python -m bdh_jax.main --config=configs/nback.py --workdir=runs/nback``.

Run it again to resume, or, once finished, to print the table again. Exit status: 0 finished, 1 loss or gradient not finite,
2 a mistake in what was asked, 128 + n after signal n: Ctrl-C (130), SIGTERM (143), SIGHUP (129) and SIGUSR1 (138) save first. A second
Ctrl-C aborts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from bdh_jax.commands._flags import define_config, define_path
from bdh_jax.config import ConfigError
from bdh_jax.experiment import run
from bdh_jax.parallel.devices import check_devices

_CONFIG = define_config()
_WORKDIR = define_path("workdir", "Folder for checkpoints, metrics and results; resumes what it holds.")


def main(argv: Sequence[str]) -> None:
    """Train what the flags ask for.

    Raises:
      ConfigError: a flag is missing, or the experiment cannot be run as configured.
    """
    del argv
    if _CONFIG.value is None:
        raise ConfigError("--config is missing: name a configuration, such as --config=configs/nback.py")
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name a folder for checkpoints and results, such as --workdir=runs/nback")
    config = _CONFIG.value
    if config.mesh.distributed:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ConfigError(
                f"mesh.distributed=True: this is no cluster that JAX knows ({error}); set it to False"
            ) from error
        check_devices()
    run(config, Path(_WORKDIR.value))
