"""Settings of every test, made before JAX starts."""

from __future__ import annotations

import gc
import importlib.metadata
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = [
    "--xla_force_host_platform_device_count=8",  # tests of meshes; the others use the first device
    "--xla_backend_optimization_level=0",  # half the time to compile, and the arrays of tests are small
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # These halve the time to compile once more. Later versions of XLA stop at the first flag, which they no longer have.
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: one thread each is faster than every worker using all of them.
    _FLAGS += ["--xla_cpu_multi_thread_eigen=false", "intra_op_parallelism_threads=1"]


def _programs() -> Path:
    """Where what tests compile is kept for all checkouts of this user; in this one if nothing can be written there."""
    try:
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (named if named.is_absolute() else Path.home() / ".cache") / "bdh_jax" / "test_programs"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # the second where there is no home
        pass
    return Path(__file__).parents[1] / ".pytest_cache" / "jax"


# A third of a test's time is compilation: the same program is compiled once, also across processes and runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_programs()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)

# Examples compile: they take long, but the same ones always.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("default")


# What `make test-quick` runs, beside tests marked `quick`.
_QUICK = ("config", "data", "fast_weights", "interop", "kernels", "mutations", "runs")
# But not these: interpreted kernels, and programs with hundreds of batches.
_NOT_QUICK = ("kernels/test_linear_algebra.py", "kernels/test_pallas.py", "kernels/test_token_step_pallas.py")
# What `make test-slow` runs: whole commands, runs that are ended and gone on with, and the pages of docs/how-to.
_SLOW = (
    "analysis/test_calibration.py",
    "analysis/test_report_graph.py",
    "analysis/test_report_synapses.py",
    "benchmarks/test_accelerator.py",
    "commands/test_capacity.py",
    "commands/test_lifelong.py",
    "commands/test_merge.py",
    "commands/test_programs.py",
    "commands/test_signals.py",
    "commands/test_terminal.py",
    "commands/test_text.py",
    "commands/test_train.py",
    "faults/test_kills.py",
    "launch",
    "lifelong/test_benchmark.py",
    "lifelong/test_sweep.py",
    "models/test_mixture.py",
    "outside",
    "parallel/test_fsdp.py",
    "parallel/test_processes.py",
    "parallel/test_sequence.py",
    "report",
    "runs/test_sigkill.py",
    "test_sweep.py",
    "training/test_expert_hooks.py",
    "training/test_init_from.py",
    "training/test_resume.py",
    "training/test_sigma.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        if path.as_posix() in _SLOW or path.parts[0] in _SLOW:
            item.add_marker(pytest.mark.slow)
        elif path.parts[0] in _QUICK and path.as_posix() not in _NOT_QUICK:
            item.add_marker(pytest.mark.quick)


def pytest_collection_finish():
    # What is there by now stays to the end. JAX makes so many objects while it traces that the collector would look through all of
    # it again and again.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_make_parametrize_id(val):
    """Contents of files are no names: some hold the time, others a hundred thousand brackets."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
