"""A state on disk goes on in another process, and only with the model and the weights that made it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import resource
import sys

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from bdh_jax import BDH
from bdh_jax.generation.sampling import prefill
from bdh_jax.generation.state_files import StateError, config_hash, load_state, save_state
from bdh_jax.models.latent import LatentConfig
from bdh_jax.models.registry import MODELS
from tests import processes as commands
from tests.generation.small import CONFIG, FAST, PROMPTS, VOCAB, make, text_from


def test_a_saved_state_goes_on_in_another_process(tmp_path):
    model, slow = make(CONFIG)
    state = prefill(model, slow, PROMPTS)
    path = tmp_path / "deep" / "state.safetensors"
    save_state(path, state, model, slow)
    status, output, errors = commands.run_text("tests.generation.test_state_files", path)
    assert status == 0, errors
    assert json.loads(output) == text_from(model, slow, state)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    model, slow = make(CONFIG)
    path = tmp_path / "state.safetensors"
    save_state(path, prefill(model, slow, PROMPTS), model, slow)
    kept = path.read_bytes()
    with pytest.raises(StateError, match=r"state.safetensors exists; name another file"):
        save_state(path, prefill(model, slow, PROMPTS), model, slow)
    other = BDH(dataclasses.replace(model.config, fast=dataclasses.replace(FAST, decay=0.5)))
    with pytest.raises(StateError, match=r"of another model: fast.decay was 0.8 there and is 0.5 here"):
        load_state(path, other, slow)
    faster = BDH(dataclasses.replace(model.config, implementation="chunked", chunk_size=7))
    load_state(path, faster, slow)  # the same function
    with pytest.raises(StateError, match="of other weights"):
        load_state(path, model, {**slow, "embed": slow["embed"] + 1})
    with pytest.raises(StateError, match="does not exist"):
        load_state(tmp_path / "absent", model, slow)
    (tmp_path / "half").write_bytes(kept[: len(kept) // 2])
    with pytest.raises(StateError, match="half cannot be read .*truncated"):
        load_state(tmp_path / "half", model, slow)
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(StateError, match="other is no state of this library"):
        load_state(tmp_path / "other", model, slow)
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "older", {"format": "bdh_jax.generation_state.1"})
    with pytest.raises(StateError, match="older is a state of another version: .*read the prompt again"):
        load_state(tmp_path / "older", model, slow)
    save_state(path, prefill(model, slow, PROMPTS[:1]), model, slow, overwrite=True)
    assert load_state(path, model, slow).logits.shape == (1, VOCAB)


@pytest.mark.parametrize("name", MODELS.names())
def test_a_state_is_of_the_settings_that_make_it(name):
    """What says how something is computed is left out, and so is dropout; a state of an earlier version has the same hash."""
    config = MODELS.get(name, "model")()
    settings = dataclasses.asdict(config)
    for left_out in ("implementation", "kernel", "chunk_size", "remat", "dropout", "token_step", "most_thinking"):
        settings.pop(left_out, None)
    assert config_hash(config) == hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def test_how_many_think_at_once_is_no_other_model():
    config = LatentConfig(n_layer=1, d_model=8, n_head=1, n_neurons=16)
    assert config_hash(config) == config_hash(dataclasses.replace(config, most_thinking=3))
    assert config_hash(config) != config_hash(dataclasses.replace(config, thinking=3))


def _write(path, model, slow, **changes):
    """A state without a digest, as older versions wrote it, with arrays changed."""
    with safetensors.safe_open(path, framework="numpy") as file:
        header, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for key in ("digest", "arrays"):
        header.pop(key)
    safetensors.numpy.save_file(arrays | changes.pop("arrays", {}), path, {**header, **changes})


def test_a_state_without_a_digest_is_read_with_a_warning_and_its_values_are_looked_at(tmp_path, caplog):
    logging.getLogger("bdh_jax").propagate = True
    model, slow = make(CONFIG)
    state = prefill(model, slow, PROMPTS)
    for changes, message in (
        ({"arrays": {"logits": np.full((3, VOCAB), np.nan)}}, "logits is NaN or infinite in places"),
        ({"arrays": {"fast.position": np.array([1, -7, 2], np.int32)}}, "fast.position is -7 and cannot be negative"),
        ({"batch": "-1"}, r"is damaged \(batch: .*, and is '-1'\)"),
        ({"config_hash": "0", "config": "{"}, "is damaged .config: it is no JSON"),
    ):
        path = tmp_path / "state.safetensors"
        save_state(path, state, model, slow, overwrite=True)
        _write(path, model, slow, **changes)
        with pytest.raises(StateError, match=message):
            load_state(path, model, slow)
    save_state(path, state, model, slow, overwrite=True)
    _write(path, model, slow)
    caplog.clear()
    assert text_from(model, slow, load_state(path, model, slow)) == text_from(model, slow, state)
    assert "without a digest" in caplog.text


def test_a_full_disk_leaves_no_half_of_a_state(tmp_path):
    model, slow = make(CONFIG)
    path = tmp_path / "state.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(StateError, match="state.safetensors cannot be written .*make room"):
            save_state(path, prefill(model, slow, PROMPTS), model, slow)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def _continue_saved(path: str) -> None:
    """Print what follows a saved state: the other process of the test of saved states."""
    jax.config.update("jax_enable_x64", True)
    model, slow = make(CONFIG)
    print(json.dumps(text_from(model, slow, load_state(path, model, slow))))


if __name__ == "__main__":
    _continue_saved(sys.argv[1])
