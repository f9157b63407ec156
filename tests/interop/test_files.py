"""Checkpoints of the published code on disk. PyTorch is no dependency of the tests, so a stand-in of what they use of it serves."""

from __future__ import annotations

import json
import pickle
import types

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bdh_jax.interop import WeightsError, files, read_pathway, to_pathway, write_pathway


def published():
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (7, 4), "encoder": (2, 4, 6), "encoder_v": (2, 4, 6), "decoder": (12, 4), "lm_head": (4, 7)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


class Tensor:
    """The part of ``torch.Tensor`` that is used."""

    def __init__(self, array):
        self._array = array

    @property
    def dtype(self):
        return f"torch.{self._array.dtype}"

    def element_size(self):
        return self._array.dtype.itemsize

    def float(self):
        return Tensor(self._array.astype(np.float32))

    def numpy(self, force):
        return self._array


def _load(path, *, map_location, weights_only):
    assert (map_location, weights_only) == ("cpu", True)
    with open(path, "rb") as file:
        return pickle.load(file)


def _save(content, path):
    with open(path, "wb") as file:
        pickle.dump(content, file)


def _save_safetensors(arrays, path):
    """Also of dtypes that the library writes from PyTorch only."""
    codes = {"float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "int8": "I8", "int64": "I64", "bool": "BOOL"}
    header, data = {}, b""
    for name, array in arrays.items():
        places = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": codes.get(array.dtype.name, "C64"), "shape": array.shape, "data_offsets": places}
        data += array.tobytes()
    content = json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)


@pytest.fixture
def _torch(monkeypatch):
    torch = types.SimpleNamespace(Tensor=Tensor, from_numpy=Tensor, load=_load, save=_save)
    monkeypatch.setattr(files, "_torch", lambda path: torch)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.usefixtures("_torch")
def test_there_and_back_is_exact(tmp_path, name):
    first = tmp_path / "made" / name
    if name.endswith("pt"):
        first.parent.mkdir()
        _save({key: Tensor(array) for key, array in published().items()}, first)
    else:
        first.parent.mkdir()
        safetensors.numpy.save_file(published(), first)
    config, slow = read_pathway(first, n_head=2, n_layer=3)
    assert (config.n_layer, config.n_head, config.vocab_size) == (3, 2, 7)
    second = tmp_path / "deep" / name
    write_pathway(second, slow | {"synapse": np.ones((3, 2, 6, 4), np.float32)})
    _, again = read_pathway(second)
    for key, array in published().items():
        np.testing.assert_array_equal(to_pathway(again)[key], array)
        assert to_pathway(again)[key].dtype == array.dtype
    assert [path.name for path in second.parent.iterdir()] == [name]


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "model_state", "bdh_state_dict"])
@pytest.mark.usefixtures("_torch")
def test_weights_of_a_compiled_model_beside_other_things_are_found(tmp_path, wrapper):
    weights = {f"_orig_mod.{key}": Tensor(array.astype(np.float16)) for key, array in published().items()}
    weights["_orig_mod.attn.freqs"] = Tensor(np.zeros(6, np.float32))
    _save({wrapper: weights, "step": 7, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    _, slow = read_pathway(tmp_path / "w.pth")
    assert slow["embed"].dtype == np.float32
    np.testing.assert_array_equal(slow["embed"], published()["embed.weight"].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "module._orig_mod.", "model._orig_mod."])
@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
@pytest.mark.usefixtures("_torch")
def test_weights_of_wrapped_modules_are_found(tmp_path, prefix, name):
    arrays = {prefix + key: array for key, array in published().items()}
    if name.endswith("ckpt"):
        _save({"state_dict": {key: Tensor(array) for key, array in arrays.items()}, "epoch": 3}, tmp_path / name)
    else:
        safetensors.numpy.save_file(arrays, tmp_path / name)
    _, slow = read_pathway(tmp_path / name)
    np.testing.assert_array_equal(slow["lm_head"], published()["lm_head"])
    if name.endswith("ckpt"):
        _save({key: Tensor(array) for key, array in (arrays | published()).items()}, tmp_path / name)
        with pytest.raises(WeightsError, match="w.ckpt holds embed.weight twice"):
            read_pathway(tmp_path / name)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "int64", "bool", "complex64"])
@pytest.mark.usefixtures("_torch")
def test_weights_of_other_dtypes_are_refused_by_name(tmp_path, dtype):
    weights = published()
    weights["encoder"] = weights["encoder"].astype(jnp.dtype(dtype))
    _save({key: Tensor(array) for key, array in weights.items()}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=f"w.pt: encoder is {dtype}; weights are float64, float32, float16, bfloat16"):
        read_pathway(tmp_path / "w.pt")
    _save_safetensors(weights, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w.safetensors: encoder is (F8_E4M3|I8|I64|BOOL|C64); weights are"):
        read_pathway(tmp_path / "w.safetensors")


def test_bfloat16_is_widened(tmp_path):
    arrays = {key: array.astype(jnp.bfloat16) for key, array in published().items()}
    _save_safetensors(arrays, tmp_path / "w.safetensors")
    _, slow = read_pathway(tmp_path / "w.safetensors")
    assert slow["embed"].dtype == np.float32
    np.testing.assert_array_equal(slow["embed"], arrays["embed.weight"].astype(np.float32))


@pytest.mark.usefixtures("_torch")
def test_an_unknown_wrapper_shows_what_the_file_holds(tmp_path):
    _save({"net": {key: Tensor(array) for key, array in published().items()}, "step": 3}, tmp_path / "w.pt")
    with pytest.raises(
        WeightsError, match=r"w.pt has no weights of a BDH .*under model, .*bdh_state_dict\). It holds 'net', 'step'; save"
    ):
        read_pathway(tmp_path / "w.pt")


@pytest.mark.usefixtures("_torch")
def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    good = tmp_path / "good.safetensors"
    safetensors.numpy.save_file(published(), good)
    (tmp_path / "half.safetensors").write_bytes(good.read_bytes()[:60])
    safetensors.numpy.save_file({"encoder": np.zeros((2, 4, 6), np.float32)}, tmp_path / "part.safetensors")
    (tmp_path / "empty.pt").write_bytes(b"")
    _save([1, 2], tmp_path / "list.pt")
    (tmp_path / "more.pt").write_bytes(b"\x80\x04not a pickle")
    for name, message in (
        ("absent.pt", "absent.pt does not exist"),
        ("half.safetensors", "half.safetensors cannot be read .*truncated"),
        ("part.safetensors", r"part.safetensors: not a BDH state dict: missing \['embed.weight'"),
        ("empty.pt", "empty.pt cannot be read .*it may be truncated"),
        ("more.pt", r"more.pt is no file of weights alone.*Save model.state_dict\(\) instead"),
        ("list.pt", "list.pt holds a list and no weights by name"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_pathway(tmp_path / name)
    (tmp_path / "w.txt").write_text("")
    with pytest.raises(WeightsError, match=r"w.txt must end in .safetensors, .pt"):
        read_pathway(tmp_path / "w.txt")
    with pytest.raises(WeightsError, match=r"good.safetensors: n_head=4, but encoder"):
        read_pathway(good, n_head=4)
    _, slow = read_pathway(good)
    with pytest.raises(WeightsError, match="good.safetensors exists; name another file"):
        write_pathway(good, slow)
    write_pathway(good, slow, overwrite=True)
    with pytest.raises(WeightsError, match="w.npz must end in"):
        write_pathway(tmp_path / "w.npz", slow)


def test_without_pytorch_its_files_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"needs PyTorch: pip install torch, or convert it to .safetensors"):
        read_pathway(tmp_path / "w.pt")
