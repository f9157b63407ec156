"""What this library does on the accelerator of this machine, within minutes.

    python -m benchmarks.accelerator --out=DIR                          everything that fits into 9 minutes
    python -m benchmarks.accelerator --out=DIR --official=CHECKOUT      and the official PyTorch code beside it
    python -m benchmarks.accelerator --out=DIR --parts=contract,row_add
    python -m benchmarks.accelerator --out=DIR --tiny                   a rehearsal at tiny sizes, also on a CPU

Every part is a process of its own, and writes each of its results into DIR/PART.json once it is there, with the device, versions and
commit. The most valuable parts come first. A part or a row for which too little time is left is left out, by name; one that fails says
why, and the others go on. The exit status is 1 if one failed, 2 for a mistake in what was asked.

Needs no network, and of Python packages only numpy, jax, flax, optax, orbax-checkpoint, chex, absl-py, rich and scipy; PyTorch for the
comparison. No ratio is given before both sides have returned the same numbers.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.accelerator import run
from benchmarks.accelerator.part import Settings


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for. Returns the exit status."""
    parts = run.all_parts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--parts", default=",".join(parts), metavar="NAMES", help="with commas between; %(default)s")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it; %(default)s")
    parser.add_argument("--official", type=Path, metavar="DIR", help="a checkout of github.com/pathwaycom/bdh, with bdh.py")
    parser.add_argument("--text", type=Path, metavar="FILE", help="to train on; without it a text is made up")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, whose figures mean nothing")
    options = parser.parse_args(argv)
    chosen = options.parts.split(",")
    for name in chosen:
        if name not in parts:
            parser.error(f"--parts={name} is none of {', '.join(parts)}")
    if options.official is not None and not (options.official / "bdh.py").is_file():
        parser.error(f"--official={options.official} holds no bdh.py; name a checkout of the official code")
    if options.text is not None and not options.text.is_file():
        parser.error(f"--text={options.text} is no file")
    if not options.minutes > 0:
        parser.error(f"--minutes={options.minutes} must be positive")
    scratch = Path(tempfile.mkdtemp(prefix="bdh_jax_accelerator_"))
    try:
        official, text = (None if path is None else path.resolve() for path in (options.official, options.text))
        settings = Settings(options.out.resolve(), scratch, options.tiny, official, text)
        wanted = {name: part for name, part in parts.items() if name in chosen}
        summary = run.run(wanted, settings, options.minutes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print("\n".join(run.lines(summary)))
    print(f"{summary['seconds']:.0f} s; results in {options.out}")
    return run.status(summary)


if __name__ == "__main__":
    sys.exit(main())
