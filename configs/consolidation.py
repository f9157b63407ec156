"""The published consolidation experiment, causally: n-back with consolidation after every training step.

    python -m bdh_jax.main --config=configs/consolidation.py:row_topk --workdir=runs/row_topk --config.seeds=1337,2026,2027

The model is that of ``configs/nback.py`` with a synapse, read beside the fast weights and written by consolidation alone. The
question is whether writing back harms n-back. Variants, of which one is named, and ``smoke`` and ``seed25m`` beside it:

    control      the synapse stays zero (default)
    dense        all rows
    row_topk     the tenth of the rows with the largest norm
    row_random   a random tenth, drawn anew every step
    row_bottom   the tenth with the smallest norm above zero
    equal_norm   with one of them: every change scaled to the same norm, so that functions are compared at equal size
    seed25m      the published 25 M parameter size, for an accelerator
    smoke        a tiny model for a few steps

A seed takes about 90 s on one CPU core; every variant but ``dense`` at large rates stays within a point of the ceiling
(docs/reference/consolidation.md).

``--config.consolidation.options.rate=1e-3`` changes the rate, and ``--config.consolidation.function=module:function`` runs your own. The
counter-benchmarks are scored with ``python -m bdh_jax evaluate --config=configs/counter.py --workdir=...``.
"""

from __future__ import annotations

from pathlib import Path

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change, parse_variants
from bdh_jax.config.files import import_file
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.experiment import ExperimentConfig

nback = import_file(Path(__file__).with_name("nback.py"))

FUNCTIONS = {
    "control": ConsolidationConfig(function="none"),
    "dense": ConsolidationConfig(function="dense", options={"rate": 1e-4}),
    "row_topk": ConsolidationConfig(function="row_topk", options={"fraction": 0.1, "rate": 1e-4}),
    "row_random": ConsolidationConfig(function="row_random", options={"fraction": 0.1, "rate": 1e-4}),
    "row_bottom": ConsolidationConfig(function="row_bottom", options={"fraction": 0.1, "rate": 1e-4}),
}
"""The published rate is 1e-4 for all of them."""

EQUAL_NORM = 1e-4
"""Of every change with ``equal_norm``, as a multiple of the norm of the batch mean of S."""

SHARED = ("seed25m", "smoke")
"""Variants of ``configs/nback.py`` that are taken over."""


def get_config(arg: str = "") -> ExperimentConfig:
    """The experiment.

    Args:
      arg: at most one of ``FUNCTIONS`` and any of "equal_norm" and ``SHARED``, joined by commas.

    Raises:
      ConfigError: for an unknown or repeated variant, or two functions.
    """
    names = parse_variants(arg, [*FUNCTIONS, "equal_norm", *SHARED])
    functions = [name for name in names if name in FUNCTIONS] or ["control"]
    if len(functions) > 1:
        raise ConfigError(f"variants {' and '.join(functions)} exclude each other: name one function")
    config = nback.get_config(",".join(n for n in SHARED if n in names))
    consolidation = FUNCTIONS[functions[0]]
    if "equal_norm" in names:
        if consolidation.function == "none":
            raise ConfigError("variant 'equal_norm' scales a change, and the control makes none: name a function beside it")
        consolidation = change(consolidation, norm=EQUAL_NORM)
    return change(change(config, "model.fast", synapse=True), consolidation=consolidation)
