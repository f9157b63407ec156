"""A model from outside the package, as docs/how-to/model.md shows it: trained, interrupted, gone on with, scored and loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import ConfigError, FastState, load
from tests.compiled import apply, init
from tests.pages import ROOT, commands, import_module, write_files
from tests.processes import run_text

PAGE = "docs/how-to/model.md"
recurrent = import_module(PAGE, "recurrent")
CONFIG = recurrent.RecurrentConfig(vocab_size=11, n_layer=2, d_model=8, width=6, init_std=0.5, dtype="float64")
LENGTH = 9
EXACT = 1e-12  # float64, a few dozen additions of numbers of order 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the files of the page."""
    folder = tmp_path_factory.mktemp("recurrent")
    assert write_files(PAGE, folder) == ["recurrent.py", "recurrent_config.py", "recall.py"]
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """The folder after the page's first command."""
    train, _ = commands(PAGE)
    status, output, errors = run_text(*train, folder=folder)
    assert status == 0, errors
    assert re.search(r"n8 .*\d\.\d{4}", output)
    return folder


def test_it_is_trained_and_scored(trained):
    results = json.loads((trained / "runs" / "recurrent" / "results.json").read_text())
    assert results["config"]["model"]["architecture"] == "recurrent:RecurrentConfig"
    losses = [row["loss"] for row in map(json.loads, (trained / "runs/recurrent/metrics.jsonl").open()) if "loss" in row]
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1
    _, evaluate = commands(PAGE)
    status, output, errors = run_text(*evaluate, "--out=scores.json", folder=trained)
    assert status == 0, errors
    assert re.search(r"n8 .*\d\.\d{4}", output)


def test_what_was_trained_is_loaded(trained, monkeypatch):
    """Also by the program of the page, which carries the state from one call to the next."""
    monkeypatch.syspath_prepend(trained)
    config, slow = load(trained / "runs" / "recurrent")
    assert type(config).__name__ == "RecurrentConfig"
    assert config.width == 48
    assert slow["layer1"]["out"].shape == (48, 32)
    path = {"PYTHONPATH": f"{ROOT}:{trained}", "PATH": "", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run([sys.executable, "recall.py"], cwd=trained, env=path, capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 1e-4


def test_a_run_that_was_interrupted_ends_with_the_same_bits(trained, monkeypatch):
    monkeypatch.syspath_prepend(trained)
    # A module that tells the process to stop once it has saved, and is the page's own when it is started again.
    page = (trained / "recurrent_config.py").read_text()
    stop = (
        "import signal\n"
        "from bdh_jax.runs.checkpoint import Checkpoints\n"
        "save = Checkpoints.save\n"
        "def save_and_stop(*arguments, **how):\n"
        "    save(*arguments, **how)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "Checkpoints.save = save_and_stop\n"
    )
    (trained / "again.py").write_text(stop + page)
    train, _ = commands(PAGE)
    command = [argument.replace("recurrent_config.py", "again.py") for argument in train]
    status, _, errors = run_text(*command, "--workdir=cut", folder=trained)
    assert status == 143, errors
    assert "saved step 10 of 20" in errors
    (trained / "again.py").write_text(page)
    status, _, errors = run_text(*command, "--workdir=cut", folder=trained)
    assert status == 0, errors
    assert "resuming cut at step 10" in errors
    whole, cut = (load(trained / name, "last")[1] for name in ("runs/recurrent", "cut"))
    chex.assert_trees_all_equal(whole, cut)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("width=0", "config.model: width=0 must be at least 1"),
        ("widht=3", "config.model has no key 'widht'. Did you mean config.model.width?"),
        ("dropout=0.1", "dropout=0.1: a model of RecurrentArchitecture has no dropout; set it to 0"),
    ],
)
def test_mistakes_are_one_line(folder, override, message):
    train, _ = commands(PAGE)
    status, output, errors = run_text(*train, "--workdir=wrong", f"--config.model.{override}", folder=folder)
    assert (status, output) == (2, "")
    assert message in errors
    assert "Traceback" not in errors
    assert not (folder / "wrong").exists()


@pytest.fixture
def small():
    """In float64: model, weights, tokens, masks and a state to start from."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        model = CONFIG.build()
        slow = init(model, 0)
        tokens = rng.integers(0, 11, (2, LENGTH)).astype(np.int32)
        valid = rng.random((2, LENGTH)) < 0.7
        reset = np.zeros((2, LENGTH), bool)
        reset[0, 4] = reset[1, 7] = True
        fast = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(leaf.dtype), model.init_fast(2))
        yield model, slow, tokens, {"valid": valid, "reset": reset}, fast


@pytest.mark.parametrize("cuts", [[4], pytest.param([1, 2, 7], marks=pytest.mark.full), list(range(1, LENGTH))], ids=str)
def test_any_split_into_calls_equals_one_call(small, cuts):
    model, slow, tokens, masks, start = small
    whole = apply(model, slow, tokens, start, **masks)
    fast, logits = start, []
    for first, last in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        part = {name: mask[:, first:last] for name, mask in masks.items()}
        out = apply(model, slow, tokens[:, first:last], fast, **part)
        fast, logits = out.fast, [*logits, out.logits]
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole.logits, rtol=EXACT, atol=EXACT)
    chex.assert_trees_all_close(fast, whole.fast, rtol=EXACT, atol=EXACT)


def test_it_is_the_recurrence_of_the_page(small):
    """In NumPy, one token after another."""
    model, slow, tokens, masks, start = small

    def norm(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    for b in range(2):
        kept = [np.asarray(layer.h[b]) for layer in start.layers]
        for t in range(LENGTH):
            x = norm(np.asarray(slow["embed"])[tokens[b, t]])
            for index in range(2):
                layer = {name: np.asarray(weight) for name, weight in slow[f"layer{index}"].items()}
                if masks["reset"][b, t]:
                    kept[index] = np.zeros(6)
                gate = 1 / (1 + np.exp(-x @ layer["gate"]))
                new = (1 - gate) * kept[index] + gate * (x @ layer["new"])
                if masks["valid"][b, t]:
                    kept[index] = new
                x = x + norm(kept[index]) @ layer["out"]
        out = apply(model, slow, tokens, start, **masks, collect=("gate",))
        np.testing.assert_allclose(out.logits[b, -1], norm(x) @ np.asarray(slow["lm_head"]), rtol=1e-9)
        np.testing.assert_allclose([layer.h[b] for layer in out.fast.layers], kept, rtol=1e-9)
        np.testing.assert_allclose(out.collected["gate"][1, b, -1], gate, rtol=1e-9)


def test_its_state_is_declared(small):
    model, _, _, _, fast = small
    assert isinstance(fast, FastState)
    assert fast.nbytes == 2 * 2 * 6 * 8 + 2 * 4
    chosen = fast.select(jnp.array([1]))
    np.testing.assert_array_equal(chosen.layers[1].h, fast.layers[1].h[1:])
    cleared = fast.reset(jnp.array([True, False]))
    np.testing.assert_array_equal(cleared.layers[0].h[0], 0)
    np.testing.assert_array_equal(cleared.layers[0].h[1], fast.layers[0].h[1])
    with pytest.raises(ValueError, match=r"fast\.layers\.0\.h has shape \(1, 6\), but this model needs \(2, 6\)"):
        model.apply({"params": small[1]}, small[2], chosen)
    with pytest.raises(ConfigError, match=r"mesh\.heads=2"):
        CONFIG.check_mesh({"data": 1, "sequence": 1, "heads": 2, "neurons": 1})


@pytest.mark.parametrize("part", ["block", "readout"])
def test_a_part_that_returns_another_shape_is_found_where_it_is_called(part, monkeypatch):
    """And not a layer later, or in the loss."""
    kind = recurrent.RecurrentArchitecture
    made = getattr(kind, part)

    def cut(self, *arguments, **named):
        output = made(self, *arguments, **named)
        return output._replace(x=output.x[:, :1]) if part == "block" else output[..., :1]

    monkeypatch.setattr(kind, part, cut)
    model = CONFIG.build()
    with jax.enable_x64(True), pytest.raises(AssertionError, match=r"\[shape\]|shape"):
        jax.eval_shape(
            lambda key: model.apply({"params": model.init_slow(key)}, jnp.zeros((2, LENGTH), int)), jax.random.key(0)
        )
