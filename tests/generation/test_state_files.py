"""A state on disk goes on in another process, and only with the model and the weights that made it."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from bdh_jax import BDH
from bdh_jax.generation.sampling import prefill
from bdh_jax.generation.state_files import StateError, load_state, save_state
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


def _continue_saved(path: str) -> None:
    """Print what follows a saved state: the other process of the test of saved states."""
    jax.config.update("jax_enable_x64", True)
    model, slow = make(CONFIG)
    print(json.dumps(text_from(model, slow, load_state(path, model, slow))))


if __name__ == "__main__":
    _continue_saved(sys.argv[1])
