"""Train one experiment: ``python -m bdh_jax.main --config=configs/nback.py --workdir=runs/nback``."""

from bdh_jax.commands._shared import run
from bdh_jax.commands.train import main

if __name__ == "__main__":
    run(main)
