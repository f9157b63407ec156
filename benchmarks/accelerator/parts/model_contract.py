"""The contract of the tests, whole models in float64 against NumPy, on this device: as many of its rows as there is time for.

Rows of the interpreted kernel are the tests' own; the part ``contract`` has that kernel compiled. What is imported of the tests needs NumPy
and JAX alone.
"""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.accelerator.part import Part, Work
from tests.contract.cases import build, inner_rows, quick_rows, row_id
from tests.contract.checks import CHECKS, checks_for


def run(work: Work) -> None:
    """Every check of one row after another: first those rows that hold every value."""
    if jax.default_backend() == "tpu":
        work.leave_out("all rows", "a TPU has no float64")
        return
    rows = [row for row in inner_rows() + quick_rows()[len(inner_rows()) :] if row["dtype"] == "float64"]
    if work.tiny:
        rows = rows[:1]
    for row in rows:
        name = row_id(row)
        if row["implementation"] == "pallas_interpret":
            work.leave_out(name, "the interpreter's rows are those of the tests")
            continue
        work.attempt(name, 10, lambda row=row: _check(row))


def _check(row: Any) -> dict[str, Any]:
    names = checks_for(row, quick=True)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        case = build(row)
        for name in names:
            try:
                CHECKS[name].run(case)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
    jax.clear_caches()
    return {"checks": names}


PART = Part(place=7, minutes=0.3, least=12, run=run)
