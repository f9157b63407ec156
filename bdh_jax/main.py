"""Train one experiment: ``python -m bdh_jax.main --config=configs/nback.py --workdir=runs/nback``."""

import sys

from bdh_jax.commands import _process, train

if __name__ == "__main__":
    _process.run(train, sys.argv)
