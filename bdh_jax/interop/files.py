"""Files of published weights: PyTorch's ``.pt`` and safetensors, to this library's parameters and back."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from bdh_jax.config.base import one_line
from bdh_jax.config.records import digest_of
from bdh_jax.interop.pathway import BUFFER, NAMES, from_pathway, to_pathway
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.runs.fingerprint import digests

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "bdh_state_dict")
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.")
"""What ``torch.compile``, parallel training and a module around the model put before the names of weights, in any order."""
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Dtypes of weights: of safetensors → of PyTorch and NumPy."""
DIGEST = "bdh_jax.digest"
"""In the header of what is written here: a hash of the arrays. Files of others have none, and a changed weight cannot be told."""


class WeightsError(ValueError):
    """A file of weights that cannot be read or written. The message names the file, what is wrong and the remedy."""


def read_pathway(
    path: str | Path, n_head: int | None = None, *, n_layer: int = 6, dropout: float = 0.1
) -> tuple[BDHConfig, dict[str, np.ndarray]]:
    """Read a checkpoint of the published code.

    Args:
      path: ``.safetensors``, or ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` (needs PyTorch; loaded with ``weights_only=True``, so that
        nothing in the file is executed). The weights may lie under "model", "state_dict" or the like beside other entries, and may come
        from a compiled model or a parallel one. Half precision is widened to float32; other dtypes than floats are refused.
      n_head, n_layer, dropout: as in :func:`bdh_jax.interop.from_pathway`.

    Returns:
      As :func:`bdh_jax.interop.from_pathway`.

    Raises:
      WeightsError: for a file that is missing, damaged, of another kind, or without the weights of a BDH.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    if path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        arrays = _read_torch(path)
    else:
        raise _wrong_suffix(path)
    try:
        return from_pathway(arrays, n_head, n_layer=n_layer, dropout=dropout)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def write_pathway(path: str | Path, slow: Mapping[str, np.ndarray], *, overwrite: bool = False) -> None:
    """Write slow weights under the published names: exactly what :func:`read_pathway` reads back.

    Args:
      path: ``.safetensors``, or ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` (needs PyTorch).
      slow: the weights. A synapse or learned rates have no published counterpart and are left out.
      overwrite: replace a file that is there.

    Raises:
      WeightsError: if the file exists, or its name ends in anything else.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise _wrong_suffix(path)
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} exists; name another file, or pass overwrite=True")
    arrays = {name: np.ascontiguousarray(array) for name, array in to_pathway(slow).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")  # so that an interruption leaves no half of a file
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, part, {DIGEST: digest_of(digests(arrays))})
    else:
        torch = _torch(path)
        torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, part)
    part.replace(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = _bare_names(path, file.keys())
            for bare, name in names.items():
                dtype = file.get_slice(name).get_dtype()
                _check_dtype(path, bare, _DTYPES.get(dtype or "", dtype))
            arrays = {bare: file.get_tensor(name) for bare, name in names.items()}
            saved = (file.metadata() or {}).get(DIGEST)
    except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path} cannot be read ({one_line(str(error), 300)}); it may be truncated, or no safetensors file"
        ) from error
    if saved is not None and saved != digest_of(digests(arrays)):
        raise WeightsError(f"{path} is damaged: its arrays are not those that were saved; restore it from a copy")
    return {name: array if array.dtype.itemsize >= 4 else array.astype(np.float32) for name, array in arrays.items()}


def _bare(name: object) -> str:
    """The name without what wrapping a module has put before it."""
    bare = str(name)
    while prefix := next((prefix for prefix in _PREFIXES if bare.startswith(prefix)), ""):
        bare = bare.removeprefix(prefix)
    return bare


def _bare_names(path: Path, names: Iterable[object]) -> dict[str, Any]:
    """Bare name → name, of all but buffers."""
    found: dict[str, Any] = {}
    for name in names:
        bare = _bare(name)
        if bare in found:
            raise WeightsError(f"{path} holds {bare} twice, as {found[bare]!r} and {name!r}; save the weights of one model")
        if not bare.endswith(BUFFER):
            found[bare] = name
    return found


def _check_dtype(path: Path, name: str, dtype: str | None) -> None:
    if dtype not in _DTYPES.values():
        raise WeightsError(f"{path}: {name} is {dtype}; weights are {', '.join(_DTYPES.values())}: convert them first")


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is no file of weights alone: what else it holds could run code when loaded. Save model.state_dict() instead"
        ) from error
    except Exception as error:  # what a damaged pickle raises is of any kind
        reason = one_line(str(error).split("\n")[0].split(". ")[0] or type(error).__name__, 300)
        raise WeightsError(f"{path} cannot be read ({reason}); it may be truncated") from error
    while isinstance(content, Mapping) and not any(_bare(name) in NAMES for name in content):
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__} and no weights by name; save model.state_dict()")
    if not any(_bare(name) in NAMES for name in content):
        found = ", ".join(map(repr, itertools.islice(content, 12))) or "nothing"
        raise WeightsError(
            f"{path} has no weights of a BDH where they are looked for (at the top, or under {', '.join(_WRAPPERS)}). It holds {found}; "
            "save model.state_dict()"
        )
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    arrays = {}
    for bare, name in _bare_names(path, tensors).items():
        _check_dtype(path, bare, str(tensors[name].dtype).removeprefix("torch."))
        tensor = tensors[name] if tensors[name].element_size() >= 4 else tensors[name].float()
        arrays[bare] = tensor.numpy(force=True)
    return arrays


def _torch(path: Path) -> ModuleType:
    try:
        import torch  # pyright: ignore[reportMissingImports] - not a dependency: only these files need it
    except ImportError as error:
        raise WeightsError(
            f"{path} is a PyTorch file, which needs PyTorch: pip install torch, or convert it to .safetensors"
        ) from error
    return torch


def _wrong_suffix(path: Path) -> WeightsError:
    return WeightsError(f"{path} must end in .safetensors, {', '.join(TORCH_SUFFIXES)}: the ending says how it is written")
