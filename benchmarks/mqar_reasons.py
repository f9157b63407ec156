"""Why BDH recalls what it recalls in MQAR: what its own addresses could hold, by each rule.

    python benchmarks/mqar_reasons.py --workdir=runs/mqar --json benchmarks/results/mqar_reasons_cpu.json

Reads the runs of BDH that ``benchmarks/mqar_table.py`` left in the same folder (part "grid", the first seed) and trains nothing. For each layer it
takes the addresses that the model forms on the longest test set, and asks what a matrix would recall that is written under them with values that
cannot be confused (one direction for each token id): by the Hebbian sum, by the delta rule, and by least squares, which is the most that any linear
read can. "own values" is the Hebbian sum of the model's own token embeddings, D wide, read by the embedding that is most alike. "law" is what the law of
capacity (docs/explanation/capacity.md) says of that sum: noise has the variance Σ (q·k)² ÷ D over all other writes, as random values would bring
it, and an answer is right where it is the largest of all values. Beside the model's own accuracy this tells apart

    overlap       addresses of different keys are alike: the sum and the accuracy are low, least squares is high
    directions    there are fewer directions than pairs: least squares is low too
    values        the sum is high and with own values it is low: D numbers do not keep so many values apart
    the rest      all are high and the accuracy is not: what is lost is lost in the readout, or was not learned

"overlap" is the mean cosine of the addresses of two keys of a sequence; "directions" the participation ratio (Σλ)² ÷ Σλ² of their Gram matrix, at
most the number of pairs. The null of both is the same with addresses whose neurons are shuffled for each key on its own: as sparse and as large, and
without any structure.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import mqar_table
import numpy as np

from bdh_jax.analysis.fact_capacity import right_share
from bdh_jax.experiment import load_as, read_experiment
from bdh_jax.fast_weights.rules import scan_rule
from bdh_jax.fast_weights.rules.mesa import ridge_solution
from bdh_jax.kernels.fast_weight_scan import fast_weight_scan
from bdh_jax.layers.norm import layer_norm
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.tasks.mqar import IGNORED

ROWS = tuple(row for row in mqar_table.PARTS["grid"] if row.variant in ("shift", "write_back"))
SEQUENCES = 64
"""Of the longest test set."""
RULES = ("hebbian", "delta", "least squares", "own values")
MARKS = ("<!-- reasons: made by benchmarks/mqar_reasons.py -->", "<!-- end of reasons -->")
COLUMNS = (*RULES, "law")
RIDGE = 1e-3
"""Of the least squares, in units of the mean square of an address."""


def main() -> None:
    """Read the runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the runs of benchmarks/mqar_table.py")
    parser.add_argument("--seed", type=int, default=0, help="of the runs")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--write", type=Path, help="put the table into this page, between its marks")
    options = parser.parse_args()
    found = {}
    for row in ROWS:
        # A run that diverged has no results; at a rate that was only tried there is none of this seed.
        folders = sorted((options.workdir / "grid" / row.name).glob(f"rate*/seed{options.seed}/results.json"))
        if not folders:
            sys.exit(
                f"{options.workdir} has no finished run of {row.label!r}; run benchmarks/mqar_table.py --parts grid first"
            )
        for result in folders:
            run = of_run(result.parent)
            found[row.label if len(folders) == 1 else f"{row.label}, rate {run['rate']:g}"] = run
    print(
        f"Recall of the longest test set, {SEQUENCES} sequences, by the trained model and by rules under its own addresses\n"
    )
    head = ("model", "layer", "overlap", "null", "directions", "null", *COLUMNS, "trained")
    rows = []
    for label, run in found.items():
        for number, layer in enumerate(run["layers"], 1):
            cells = [f"{layer[name]:.2f}" for name in ("overlap", "overlap_null")]
            cells += [f"{layer[name]:.1f}" for name in ("directions", "directions_null")]
            cells += [f"{layer[rule]:.3f}" for rule in COLUMNS]
            rows.append([label, str(number), *cells, f"{run['accuracy']:.3f}"])
    table = measure.markdown(head, rows)
    print(table)
    if options.write:
        measure.write_between(options.write, MARKS, table)
    if options.json:
        command = " ".join(["python", "benchmarks/mqar_reasons.py", *sys.argv[1:]])
        measure.write_json(options.json, {"command": command, "seed": options.seed, "rows": found})


def of_run(folder: Path) -> dict[str, Any]:
    """What is known of one run: its accuracy, and for each layer what its addresses could hold."""
    config, slow = load_as(BDHConfig, folder, "last")
    experiment = read_experiment(folder)
    task = experiment.task.make(seed=0, batch_size=experiment.train.batch_size)
    inputs, labels = (array[:SEQUENCES] for array in task.test_sets[-1])
    pairs = experiment.task.test[-1][1]
    asked = np.nonzero(labels != IGNORED)[1].reshape(len(labels), pairs)
    right = np.take_along_axis(labels, asked, axis=1)
    tap = "address" if config.fast.enabled else "code"
    output = config.build().apply({"params": slow}, inputs, state="none", collect=(tap,))
    said = np.take_along_axis(np.asarray(output.logits).argmax(axis=-1), asked, axis=1)
    embedding = layer_norm(slow["embed"])
    layers = [of_layer(rows, inputs, asked, right, embedding) for rows in output.collected[tap]]
    return {"accuracy": float((said == right).mean()), "rate": experiment.optimizer.learning_rate, "layers": layers}


def of_layer(
    rows: jax.Array, inputs: np.ndarray, asked: np.ndarray, right: np.ndarray, embedding: jax.Array
) -> dict[str, float]:
    """Overlap and directions of the addresses [B, H, T, N] of keys, their nulls, and what each rule recalls under them."""
    addresses = jnp.moveaxis(rows, 1, 2).reshape(*inputs.shape, -1)
    keys = np.asarray(addresses[:, : 2 * asked.shape[1] : 2])
    shuffled = np.random.default_rng(0).permuted(keys, axis=-1)
    (overlap, directions), (no_overlap, no_directions) = (geometry(array) for array in (keys, shuffled))
    found = {"overlap": overlap, "overlap_null": no_overlap, "directions": directions, "directions_null": no_directions}
    one_each = jnp.eye(len(embedding), dtype=addresses.dtype)
    first_value = len(embedding) // 2
    for rule in RULES:
        values = embedding if rule == "own values" else one_each
        read = recalled(addresses, values[inputs], asked.shape[1], "hebbian" if rule == "own values" else rule)
        at_asked = jnp.take_along_axis(read, asked[..., None], axis=1)
        # What is asked for is a value, as any trained model knows.
        said = np.asarray(at_asked @ values[first_value:].T).argmax(axis=-1) + first_value
        found[rule] = float((said == right).mean())
    return found | {"law": law(addresses, inputs, asked, embedding.shape[1], len(embedding) - first_value)}


def law(addresses: jax.Array, inputs: np.ndarray, asked: np.ndarray, width: int, values: int) -> float:
    """What the law of capacity says that a Hebbian sum recalls under addresses [B, T, K], if values are random directions of ``width`` numbers."""
    queries = jnp.take_along_axis(addresses, asked[..., None], axis=1)
    # Written under the address of the token before.
    products = np.asarray(jnp.einsum("bpk,btk->bpt", queries, addresses))[..., :-1]
    behind, tokens = np.arange(1, inputs.shape[1]), inputs[:, None, :-1]
    own = (np.take_along_axis(inputs, asked, axis=1)[..., None] == tokens) & (behind < 2 * asked.shape[1])
    # A token is read before it is written.
    written = behind < asked[..., None]
    signal = np.sum(products * own, axis=-1)
    noise = np.sqrt(np.sum(np.square(products) * (written & ~own), axis=-1) / width)
    # As good as certain beyond 20.
    ratios = np.minimum(signal / np.maximum(noise, 1e-12), 20)
    grid = np.linspace(min(0.0, ratios.min()), 20, 400)
    return float(np.interp(ratios, grid, [right_share(ratio, values) for ratio in grid]).mean())


def geometry(keys: np.ndarray) -> tuple[float, float]:
    """Mean cosine of two addresses of a sequence, and the participation ratio of their Gram matrix, of [B, P, K]; both means over B."""
    length = np.linalg.norm(keys, axis=-1, keepdims=True)
    unit = keys / np.maximum(length, 1e-12)
    gram = unit @ unit.swapaxes(-1, -2)
    pairs = gram.shape[-1]
    overlap = (gram.sum(axis=(-1, -2)) - np.trace(gram, axis1=-2, axis2=-1)) / (pairs * (pairs - 1))
    values = np.linalg.eigvalsh(gram)
    directions = values.sum(axis=-1) ** 2 / np.maximum((values**2).sum(axis=-1), 1e-12)
    return float(overlap.mean()), float(directions.mean())


def recalled(addresses: jax.Array, values: jax.Array, pairs: int, rule: str) -> jax.Array:
    """What a matrix reads at every token, [B, T, D], that holds each token's value [B, T, D] under the address of the token before it.

    "least squares" solves for the pairs that are shown, and for nothing that stands behind them.
    """
    keys = jnp.pad(addresses, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    if rule != "least squares":
        # The delta rule wants addresses of length 1, which the sum of the write-back has as well.
        unit = [rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-12) for rows in (addresses, keys)]
        query, key = unit if rule == "delta" else (addresses, keys)
        options = {"rule": scan_rule(rule), "learning_rate": 1.0, "decay": 1.0, "final": "none"}
        return fast_weight_scan(query[:, None], key[:, None], values, None, **options)[0][:, 0]
    shown, held = keys[:, : 2 * pairs], values[:, : 2 * pairs]
    gram = jnp.einsum("btk,btl->bkl", shown, shown)
    ridge = RIDGE * float(jnp.mean(jnp.sum(jnp.square(shown), axis=-1)))
    state = ridge_solution(gram, jnp.einsum("btk,btv->bkv", shown, held)[:, None], ridge)[:, 0]
    return jnp.einsum("btk,bkv->btv", addresses, state)


if __name__ == "__main__":
    main()
