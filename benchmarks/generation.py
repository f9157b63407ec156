"""What a token costs after a short prompt and after a long one.

    python benchmarks/generation.py

Claims that writing 64 tokens costs at most 1.05 times as much per token after a prompt of 16,384 tokens as after one of 256, with and
without fast weights: the state's size does not depend on what was read. Prints beside it the bytes of that state and of the cache
that a transformer of equal layers and width would keep, and the context at which the two are equal. Random weights: neither time nor
size depends on them. About a minute on two CPU cores.
"""

from __future__ import annotations

import dataclasses

import jax
import measure
import numpy as np

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.analysis.language import cache_bytes
from bdh_jax.generation.sampling import Sampling, generate, prefill

LIMIT = 1.05


def main() -> None:
    parser = measure.arguments(__doc__.splitlines()[0], rounds=15)
    parser.add_argument("--short", type=int, default=256, help="tokens of the short prompt")
    parser.add_argument("--long", type=int, default=16384, help="tokens of the long prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to write")
    parser.add_argument("--layers", type=int, default=6, help="L")
    parser.add_argument("--width", type=int, default=128, help="D")
    parser.add_argument("--neurons", type=int, default=4096, help="K, over all heads")
    options = parser.parse_args()
    plain = BDHConfig(
        n_layer=options.layers, d_model=options.width, n_neurons=options.neurons, fast=FastWeightConfig(enabled=False)
    )
    rows, results, holds = [], {}, True
    for name, config in {"BDH": plain, "with write-back": dataclasses.replace(plain, fast=FastWeightConfig())}.items():
        model = BDH(config)
        slow = jax.jit(model.init_slow)(jax.random.key(0))
        prompt = np.random.default_rng(0).integers(0, 256, options.long).tolist()
        states = {length: prefill(model, slow, [prompt[-length:]]) for length in (options.short, options.long)}

        def write(length: int, model=model, slow=slow, states=states):
            # Generating gives the state up, so each round goes on from where the last one stopped.
            newest = [states[length]]
            keep = lambda state, newest=newest: newest.__setitem__(0, state)  # noqa: E731
            sampling = Sampling(temperature=1.0)
            for _ in generate(model, slow, states[length], max_tokens=options.tokens, sampling=sampling, on_state=keep):
                pass
            states[length] = newest[0]
            return newest[0].logits

        calls = {f"after {length}": (lambda length=length: write(length)) for length in states}
        seconds = measure.interleave(calls, options.rounds, name)
        ratio = measure.ratios(seconds[f"after {options.long}"], seconds[f"after {options.short}"])
        state_bytes = states[options.short].fast.nbytes
        per_token = cache_bytes(config, 1)
        holds &= ratio.median <= LIMIT
        each = [measure.summary([s / options.tokens for s in times]).format(1e3, 2) for times in seconds.values()]
        rows.append(
            [
                name,
                *each,
                ratio.format(digits=3),
                f"{state_bytes / 2**20:.1f}",
                f"{per_token / 2**10:.1f}",
                f"{state_bytes / per_token:,.0f}",
            ]
        )
        results[name] = {
            "seconds": seconds,
            "ratio": ratio._asdict(),
            "state_bytes": state_bytes,
            "cache_bytes_per_token": per_token,
        }
    measure.report(
        f"Writing {options.tokens} tokens; L {options.layers}, D {options.width}, K {options.neurons}, one sequence",
        [
            "",
            f"ms a token after {options.short}",
            f"after {options.long}",
            "ratio",
            "state, MiB",
            "cache, KiB a token",
            "equal at",
        ],
        rows,
        f"claim: ratio ≤ {LIMIT}: {'holds' if holds else 'DOES NOT HOLD'}",
    )
    measure.write_json(options.json, results)


if __name__ == "__main__":
    main()
