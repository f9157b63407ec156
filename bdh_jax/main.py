"""Train one experiment: ``python -m bdh_jax.main --config=configs/nback.py --workdir=runs/nback``."""

from __future__ import annotations

import sys

from bdh_jax.runs import signals


def main() -> None:
    """Train what the command line asks for, and exit with its status."""
    signals.listen()
    # Now that signals are heard, what takes seconds.
    from bdh_jax.commands import _process, train

    _process.run(train, sys.argv)


if __name__ == "__main__":
    main()
