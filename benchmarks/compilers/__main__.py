"""Compile every Pallas kernel, and training steps, for accelerators that this machine does not have.

    python -m benchmarks.compilers tpu               v5e, v5p and v6e: all kernels, then whole training steps
    python -m benchmarks.compilers gpu               an H100
    python -m benchmarks.compilers tpu --quick       the kernels alone, for a v5e: minutes, and seconds once they are cached

``make compile-tpu`` and ``make compile-gpu`` make the environments and run it. What a compiler refuses is printed, and the exit status
is then 1; so it is if a kernel that exceeds the chip's memory on purpose is taken. That a program compiles says that the hardware would
take it, not that it is right (the tests' interpreter says that) nor fast.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.compilers import targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platform", choices=targets.PLATFORMS)
    parser.add_argument("--quick", action="store_true", help="only the kernels, and only for one chip")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose target, name or size contain this")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write what was compiled to this file")
    parser.add_argument("--no-cache", action="store_true", help="compile again what has compiled before")
    options = parser.parse_args()
    missing = targets.missing(options.platform)
    if missing:
        print(f"{', '.join(missing)} not installed; run make compile-{options.platform}", file=sys.stderr)
        return 2
    targets.prepare(options.platform)
    from benchmarks.compilers import run  # imports JAX, which reads the environment

    return run.run(options)


if __name__ == "__main__":
    sys.exit(main())
