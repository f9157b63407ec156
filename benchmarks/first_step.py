"""How long a user waits for the first training step: the first time, and with the programs that the first time has kept.

    python benchmarks/first_step.py

Each round is a new user, whose cache folder is empty: the same training is started twice, in a process each, and ended once it has made
its first step. "No cache" is a third start, with JAX told not to keep programs. Seconds are from the start of Python. About three minutes on
two CPU cores.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("nback:smoke", "nback", "text")
STARTS = {"first": {}, "second": {}, "no cache": {"JAX_ENABLE_COMPILATION_CACHE": "false"}}
_TOLD = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "XDG_CACHE_HOME")


def seconds_to_first_step(name: str, home: Path, environment: dict[str, str]) -> float:
    """Start a training of a user whose home that is, and end it after its first step.

    Raises:
      RuntimeError: if it ends before.
    """
    kept = {key: value for key, value in os.environ.items() if key not in _TOLD}
    kept |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))}
    workdir = home / "run"
    flags = [f"--config=configs/{name.replace(':', '.py:') if ':' in name else f'{name}.py'}", f"--workdir={workdir}"]
    flags += ["--config.train.log_every=1"]
    flags += ["--config.data.path=docs/*/*.md"] if name.startswith("text") else []
    command = [sys.executable, "-m", "bdh_jax", "train", *flags]
    begin, said = time.perf_counter(), []
    with subprocess.Popen(
        command, cwd=ROOT, env=kept | environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as run:
        for line in run.stderr:
            said.append(line)
            if " step 1/" in line:
                taken = time.perf_counter() - begin
                run.send_signal(signal.SIGTERM)
                break
        else:
            raise RuntimeError(f"{name} ended before its first step: {''.join(said)[-1000:]}")
        run.communicate()
    shutil.rmtree(workdir, ignore_errors=True)
    return taken


def main() -> None:
    """Measure every configuration and print the table."""
    parser = measure.arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="as of bdh train")
    options = parser.parse_args()
    rows, results = [], {}
    for name in options.configs:
        seconds: dict[str, list[float]] = {start: [] for start in STARTS}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as home:
                for start, environment in STARTS.items():
                    seconds[start].append(seconds_to_first_step(name, Path(home), environment))
                cache = Path(home) / ".cache" / "bdh_jax"
                size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        faster = measure.ratios(seconds["first"], seconds["second"])
        shown = [measure.summary(times).format() for times in seconds.values()]
        rows.append([name, *shown, faster.format(digits=2), f"{size / 1e6:.1f}"])
        results[name] = {"seconds": seconds, "first_over_second": faster._asdict(), "bytes": size}
    measure.report(
        "Seconds to the first training step",
        ["configuration", *STARTS, "first ÷ second", "MB kept"],
        rows,
        "Median (min–max). The second start reads what the first has compiled.",
    )
    measure.write_json(options.json, {"config": vars(options) | {"json": None}, "results": results})


if __name__ == "__main__":
    main()
