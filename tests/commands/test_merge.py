"""Merging, growing and exporting as commands: what they write is read by all others, and nothing is overwritten."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from bdh_jax.experiment import load
from bdh_jax.interop import read_huggingface
from bdh_jax.runs.folder import read_run
from tests.processes import run as command

TEXT = "to be or not to be, that is the question. "


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, two runs that start from it, one of n-back, and one under a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("merge")
    (folder / "text.txt").write_text(TEXT * 100)
    more = ("--config.train.steps=4", "--config.train.evaluate_every=2", f"--config.data.path={folder / 'text.txt'}")
    done("train", "text:smoke", f"--workdir={folder / 'base'}", *more)
    for name, seed in (("a", 1), ("b", 2)):
        start = f"--config.train.init_from={folder / 'base'}"
        done("train", "text:smoke", f"--workdir={folder / name}", f"--config.seed={seed}", start, *more)
    return folder


def done(*arguments):
    status, output, errors = command("bdh_jax", *arguments)
    assert status == 0, errors.decode()
    return output.decode(), errors.decode()


def refused(*arguments):
    status, _, errors = command("bdh_jax", *arguments)
    assert status == 2, errors.decode()
    *_, last = errors.decode().splitlines()
    assert last.startswith("error: ")
    return last


def test_a_merged_run_is_read_by_all_commands(runs):
    out = runs / "both"
    done("merge", runs / "a", runs / "b", f"--out={out}")
    config, slow = load(out, "last")
    first = load(runs / "a", "last")[1]
    np.testing.assert_allclose(slow["encoder_v"][:, :, :32], first["encoder_v"])
    assert (config.n_neurons, config.rope_period) == (128, 32)
    assert read_run(out).init_from["merged"] == [{"folder": str(runs / name), "step": 4} for name in "ab"]
    assert "validation" in done("evaluate", f"--workdir={out}")[0]
    assert done("generate", f"--workdir={out}", "--prompt=to be", "--max_tokens=4")[0]
    done("score-text", f"--workdir={out}", "--context=64", "--rows=2")
    # Healing, in a run of its own and where it lies.
    flags = ("--config.train.steps=4", "--config.train.evaluate_every=2", f"--config.data.path={runs / 'text.txt'}")
    sizes = ("--config.model.n_neurons=128", "--config.model.rope_period=32")
    done(
        "train",
        "text:smoke",
        f"--workdir={runs / 'healed'}",
        f"--config.train.init_from={out}",
        "--config.seed=1",
        *flags,
        *sizes,
    )
    begun = json.loads((runs / "healed" / "run.json").read_text())["init_from"]
    assert begun["slow"] == read_run(out).init_from["slow"]
    done("train", f"--workdir={out}")
    assert "evaluation" in json.loads((out / "results.json").read_text())
    assert read_run(out).init_from["mode"] == "neurons"


def test_a_grown_run_computes_the_same_and_is_trained(runs):
    done("grow", f"--workdir={runs / 'a'}", "--n_neurons=96", f"--out={runs / 'grown'}")
    models = [load(runs / name, "last") for name in ("a", "grown")]
    tokens = np.arange(20, dtype=np.int32)[None]
    logits = [config.build().apply({"params": slow}, tokens).logits for config, slow in models]
    np.testing.assert_array_equal(*logits)
    assert models[1][0].n_head == 3
    done("train", f"--workdir={runs / 'grown'}")
    assert np.any(load(runs / "grown", "last")[1]["decoder"][2:])


def test_what_is_there_is_not_overwritten(runs):
    before = (runs / "b" / "run.json").read_bytes()
    for arguments in (
        ("merge", runs / "a", runs / "b"),
        ("grow", f"--workdir={runs / 'a'}", "--n_neurons=96"),
        ("export", f"--workdir={runs / 'a'}"),
    ):
        assert "'checkpoints' already; name a new folder" in refused(*arguments, f"--out={runs / 'b'}")
    assert (runs / "b" / "run.json").read_bytes() == before


def test_what_does_not_fit_is_refused_by_name(runs):
    assert "name two runs or more" in refused("merge", runs / "a", f"--out={runs / 'x'}")
    assert "--out is missing" in refused("merge", runs / "a", runs / "b")
    assert "nowhere" in refused("merge", runs / "a", runs / "nowhere", f"--out={runs / 'x'}")
    more = ("--config.train.steps=3", "--config.train.evaluate_every=3")
    done("train", "nback:smoke", f"--workdir={runs / 'nback'}", *more)
    assert "merge models of one tokenizer" in refused("merge", runs / "a", runs / "nback", f"--out={runs / 'x'}")
    path = f"--config.data.path={runs / 'text.txt'}"
    done("train", "text:gpt,smoke", f"--workdir={runs / 'gpt'}", path, *more)
    message = refused("merge", runs / "a", runs / "gpt", f"--out={runs / 'x'}")
    assert "model 1 has the architecture 'bdh' and model 2 'gpt'" in message
    assert f"model 2 is {runs / 'gpt'}" in message
    assert "'gpt' cannot grow" in refused("grow", f"--workdir={runs / 'gpt'}", "--n_neurons=96", f"--out={runs / 'x'}")
    assert not (runs / "x").exists()


def test_an_exported_run_is_used_elsewhere(runs, tmp_path):
    out = tmp_path / "shared"
    done("export", f"--workdir={runs / 'a'}", f"--out={out}", "--licence=mit")
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: bdh_jax\nlicense: mit\npipeline_tag: text-generation\n")
    measured = json.loads((runs / "a" / "results.json").read_text())["evaluation"]["validation"]
    assert f"| validation | {measured['bits_per_byte']:.4f} |" in card
    for file in out.iterdir():
        assert str(runs) not in file.read_bytes().decode(errors="ignore"), f"{file} tells of this machine"
    moved = tmp_path / "elsewhere"
    shutil.move(out, moved)
    (config, slow), (before, old) = load(moved), load(runs / "a", "last")
    assert config == before
    jax.tree.map(np.testing.assert_array_equal, slow, old)
    arguments = ("--prompt=to be", "--max_tokens=8", "--temperature=0", "--which=last")
    assert done("generate", f"--workdir={moved}", *arguments) == done("generate", f"--workdir={runs / 'a'}", *arguments)
    same = ("text:smoke", f"--config.data.path={runs / 'text.txt'}")
    assert done("evaluate", *same, f"--workdir={moved}")[0] == done("evaluate", *same, f"--workdir={runs / 'a'}")[0]
    done("train", *same, f"--workdir={tmp_path / 'on'}", f"--config.train.init_from={moved}", "--config.train.steps=3")
    content = {file.name: file.read_bytes() for file in moved.iterdir()}
    assert "which no training goes on with there" in refused("train", f"--workdir={moved}", *same[1:])
    assert {file.name: file.read_bytes() for file in moved.iterdir() if file.name in content} == content
    damaged = bytearray((moved / "weights.safetensors").read_bytes())
    damaged[-1] ^= 1
    (moved / "weights.safetensors").write_bytes(damaged)
    assert "its arrays are not those that were saved" in refused("generate", f"--workdir={moved}", "--prompt=x")


def test_hugging_faces_layout_holds_the_published_model(runs, tmp_path):
    out = tmp_path / "hub"
    done("export", f"--workdir={runs / 'a'}", f"--out={out}", "--layout=huggingface", "--licence=mit")
    assert {file.name for file in out.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config, slow = read_huggingface(out)
    before, old = load(runs / "a", "last")
    tokens = np.arange(20, dtype=np.int32)[None]
    np.testing.assert_array_equal(
        config.build().apply({"params": slow}, tokens).logits, before.build().apply({"params": old}, tokens).logits
    )
    done("merge", runs / "a", runs / "b", f"--out={runs / 'wide'}")
    message = refused("export", f"--workdir={runs / 'wide'}", f"--out={tmp_path / 'x'}", "--layout=huggingface")
    assert "model.rope_period=32" in message
    assert not (tmp_path / "x").exists()
    done("merge", runs / "a", runs / "b", "--mode=heads", f"--out={runs / 'heads'}")
    done("export", f"--workdir={runs / 'heads'}", f"--out={tmp_path / 'y'}", "--layout=huggingface")
    assert read_huggingface(tmp_path / "y")[0].n_head == 4
