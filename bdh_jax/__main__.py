"""``python -m bdh_jax COMMAND --flag=value``: every command of the library. Without a command it lists them."""

from __future__ import annotations

import sys

from bdh_jax.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
