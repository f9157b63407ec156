"""The file of exported weights: what is read is what was written, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from bdh_jax.runs.folder import DamagedError
from bdh_jax.runs.weights_file import read_weights, write_weights

SLOW = {"embed": np.arange(6, dtype=np.float32).reshape(2, 3), "bdh": {"encoder": np.ones((2, 2))}}


def test_nested_weights_come_back_to_the_bit(tmp_path):
    write_weights(tmp_path / "w.safetensors", SLOW, 12)
    slow, step = read_weights(tmp_path / "w.safetensors")
    assert step == 12
    assert slow.keys() == SLOW.keys()
    np.testing.assert_array_equal(slow["embed"], SLOW["embed"])
    np.testing.assert_array_equal(slow["bdh"]["encoder"], SLOW["bdh"]["encoder"])
    assert slow["bdh"]["encoder"].dtype == np.float64


def test_other_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, SLOW, 12)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="its arrays are not those that were saved"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", None])
def test_files_of_others_are_refused(content, tmp_path):
    path = tmp_path / "w.safetensors"
    if content is None:
        safetensors.numpy.save_file({"embed": SLOW["embed"]}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(DamagedError, match="bdh export did not write it|SafetensorError"):
        read_weights(path)
