"""``python -m bdh_jax COMMAND --flag=value``: every command of the library. Without a command it lists them."""

from __future__ import annotations

import sys

from bdh_jax.runs import signals


def main() -> int:
    """Run the command that the command line names, and exit with its status."""
    signals.listen()
    # Now that signals are heard, what takes seconds.
    from bdh_jax.commands import _dispatch

    return _dispatch.main(sys.argv)


if __name__ == "__main__":
    sys.exit(main())
