"""The official PyTorch code's side of the training step: ``python -m benchmarks.accelerator.official CHECKOUT GIVEN ANSWER SIZES SECONDS``.

Reads weights and tokens from GIVEN and writes to ANSWER, after every figure, what it has: losses, gradients (beside GIVEN), seconds.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.accelerator.part import write_json

ROUNDS, STEPS = 5, 4


def load(folder: Path) -> ModuleType:
    """The module ``bdh.py`` of a checkout."""
    spec = importlib.util.spec_from_file_location("official_bdh", folder / "bdh.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(folder: Path, given: Path, answer: Path, sizes: dict[str, Any], seconds: float) -> None:
    """Measure the compiled step, and if half of ``seconds`` is left or it does not compile the plain one."""
    begin = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arrays, official = np.load(given), load(folder)
    slow = {name.removeprefix("slow."): arrays[name] for name in arrays if name.startswith("slow.")}
    small, tokens = (torch.from_numpy(arrays[name].astype(np.int64)).to(device) for name in ("small", "tokens"))
    model = official.BDH(official.BDHConfig(**sizes)).to(device)
    weights = as_theirs(slow)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "seconds": {}, "problems": {}}

    model.eval()  # no dropout
    _, loss = model(small[:, :-1], small[:, 1:].contiguous())
    loss.backward()
    gradients = {name: value.grad.float().cpu().numpy() for name, value in model.named_parameters()}
    np.savez(given.with_name("official_gradients.npz"), **as_ours(gradients, slow))
    found["loss_float32"] = loss.item()
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        found["loss"] = model(tokens[:, :-1], tokens[:, 1:].contiguous())[1].item()
    write_json(answer, found)

    # As its train.py does.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    model.train()
    model.zero_grad()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    for name, forward in (("compiled", torch.compile(model)), ("eager", model)):
        if name == "eager" and found["seconds"] and time.monotonic() - begin > seconds / 2:
            found["problems"][name] = "left out: no time"
            continue
        try:
            found["seconds"][name] = _seconds(forward, optimizer, x, y, device)
        except Exception as error:
            found["problems"][name] = f"{type(error).__name__}: {error}"[:1000]
        if device == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
        write_json(answer, found)


def as_theirs(slow: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights of this library by the names, and in the shapes, of the official code."""
    theirs = {
        "embed.weight": slow["embed"],
        "encoder": slow["encoder"].transpose(1, 0, 2),
        "encoder_v": slow["encoder_v"],
        "decoder": slow["decoder"].reshape(-1, slow["decoder"].shape[-1]),
        "lm_head": slow["lm_head"],
    }
    return {name: np.ascontiguousarray(array) for name, array in theirs.items()}


def as_ours(theirs: dict[str, np.ndarray], like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of :func:`as_theirs`, in the shapes of ``like``."""
    ours = {
        "embed": theirs["embed.weight"],
        "encoder": theirs["encoder"].transpose(1, 0, 2),
        "encoder_v": theirs["encoder_v"],
        "decoder": theirs["decoder"].reshape(like["decoder"].shape),
        "lm_head": theirs["lm_head"],
    }
    return {name: np.ascontiguousarray(array) for name, array in ours.items()}


def _seconds(forward: Any, optimizer: Any, x: Any, y: Any, device: str) -> float:
    """Of a training step, the median over rounds of several steps each."""

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            _, loss = forward(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    count = STEPS if device == "cuda" else 1
    for _ in range(3):
        step()
    finish()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(count):
            step()
        finish()
        times.append((time.perf_counter() - begin) / count)
    return statistics.median(times)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]), float(sys.argv[5]))
