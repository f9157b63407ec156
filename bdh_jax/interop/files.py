"""Files of published weights: PyTorch's ``.pt`` and safetensors, to this library's parameters and back."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import safetensors
import safetensors.numpy

from bdh_jax.interop.pathway import NAMES, from_pathway, to_pathway
from bdh_jax.models.bdh import BDHConfig

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_COMPILED = "_orig_mod."
"""What ``torch.compile`` puts before the names of a module's weights."""


class WeightsError(ValueError):
    """A file of weights that cannot be read or written. The message names the file, what is wrong and the remedy."""


def read_pathway(
    path: str | Path, n_head: int | None = None, *, n_layer: int = 6, dropout: float = 0.1
) -> tuple[BDHConfig, dict[str, np.ndarray]]:
    """Read a checkpoint of the published code.

    Args:
      path: ``.safetensors``, or ``.pt``, ``.pth`` or ``.bin`` (needs PyTorch; loaded with ``weights_only=True``, so that nothing in
        the file is executed). The weights may lie under "model" or "state_dict" beside other entries, and may come from a compiled
        model. Half precision is widened to float32.
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
    arrays = {name.removeprefix(_COMPILED): array for name, array in arrays.items()}
    try:
        return from_pathway(arrays, n_head, n_layer=n_layer, dropout=dropout)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def write_pathway(path: str | Path, slow: Mapping[str, np.ndarray], *, overwrite: bool = False) -> None:
    """Write slow weights under the published names: exactly what :func:`read_pathway` reads back.

    Args:
      path: ``.safetensors``, or ``.pt``, ``.pth`` or ``.bin`` (needs PyTorch).
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
        safetensors.numpy.save_file(arrays, part)
    else:
        torch = _torch(path)
        torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, part)
    part.replace(path)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); it may be truncated, or no safetensors file") from error
    return {name: array if array.dtype.itemsize >= 4 else array.astype(np.float32) for name, array in arrays.items()}


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is no file of weights alone: what else it holds could run code when loaded. Save model.state_dict() instead"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise WeightsError(f"{path} cannot be read ({reason}); it may be truncated") from error
    while isinstance(content, Mapping) and not any(str(name).removeprefix(_COMPILED) in NAMES for name in content):
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__} and no weights by name; save model.state_dict()")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return {name: (t if t.element_size() >= 4 else t.float()).numpy(force=True) for name, t in tensors.items()}


def _torch(path: Path) -> ModuleType:
    try:
        import torch  # not a dependency: only these files need it
    except ImportError as error:
        raise WeightsError(
            f"{path} is a PyTorch file, which needs PyTorch: pip install torch, or convert it to .safetensors"
        ) from error
    return torch


def _wrong_suffix(path: Path) -> WeightsError:
    return WeightsError(f"{path} must end in .safetensors, {', '.join(TORCH_SUFFIXES)}: the ending says how it is written")
