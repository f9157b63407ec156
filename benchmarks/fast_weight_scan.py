"""Chunked scan against the plain scan over tokens, and against the bare matrix products it consists of.

    python benchmarks/fast_weight_scan.py

Claims at T 1024, K 4096, D 128: forward at least 5 times and forward with backward at least 10 times as fast as the plain
scan, at no less than half the rate of the bare products. About two minutes on two CPU cores.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import measure

from bdh_jax.kernels import fast_weight_scan

CLAIMS = {"forward": 5.0, "forward + backward": 10.0}
MATRIX_CLAIM = 0.5


def inputs(length: int, neurons: int, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Addresses as the model makes them (positive, half of them zero, length 1), shifted keys, and values."""
    code_key, value_key = jax.random.split(jax.random.key(0))
    code = jax.nn.relu(jax.random.normal(code_key, (1, length, neurons)))
    query = code / jnp.linalg.norm(code, axis=-1, keepdims=True)
    key = jnp.pad(query, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    return query, key, jax.random.normal(value_key, (1, length, width))


def scan(implementation: str, chunk: int, backward: bool):
    """Jitted scan from zeros, or its gradients by all three inputs."""

    def forward(query, key, value):
        read, _ = fast_weight_scan(
            query, key, value, decay=0.95, implementation=implementation, chunk_size=chunk, final="none"
        )
        return read

    def loss(query, key, value):
        return jnp.sum(jnp.square(forward(query, key, value)))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)) if backward else forward)


def product_shapes(chunk: int, neurons: int, width: int, backward: bool) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of the products that one chunk needs."""
    shapes = [
        (chunk, neurons, chunk),  # scores = q kᵀ
        (chunk, chunk, width),  # scores x
        (chunk, neurons, width),  # q S
        (neurons, chunk, width),  # S += kᵀ x
    ]
    if backward:
        shapes += [
            (chunk, width, chunk),  # dscores = dr xᵀ
            (chunk, chunk, width),  # dx = scoresᵀ dr
            (chunk, chunk, neurons),  # dq = dscores k
            (chunk, chunk, neurons),  # dk = dscoresᵀ q
            (chunk, width, neurons),  # dq += dr Sᵀ
            (neurons, chunk, width),  # dS += qᵀ dr
            (chunk, width, neurons),  # dk += x dSᵀ
            (chunk, neurons, width),  # dx += k dS
        ]
    return shapes


def products(shapes: list[tuple[int, int, int]], count: int):
    """A call that makes ``count`` rounds of plain 2-D products of these shapes, operands contiguous and untransposed."""
    operands = []
    for index, (rows, inner, columns) in enumerate(shapes):
        keys = jax.random.split(jax.random.key(index))
        operands.append((jax.random.normal(keys[0], (rows, inner)), jax.random.normal(keys[1], (inner, columns))))
    multiply = jax.jit(lambda pairs: [a @ b for a, b in pairs])
    return lambda: [multiply(operands) for _ in range(count)]


def main() -> None:
    parser = measure.arguments(__doc__.splitlines()[0], rounds=15)
    parser.add_argument("--length", type=int, default=1024, help="T")
    parser.add_argument("--neurons", type=int, default=4096, help="K")
    parser.add_argument("--width", type=int, default=128, help="D")
    parser.add_argument("--chunk", type=int, default=128, help="tokens per chunk")
    parser.add_argument("--plain-rounds", type=int, default=5, help="timed rounds of the plain scan, which takes seconds")
    options = parser.parse_args()
    length, neurons, width, chunk = options.length, options.neurons, options.width, options.chunk
    arrays = inputs(length, neurons, width)

    rows, results = [], {}
    for direction, claim in CLAIMS.items():
        backward = direction != "forward"
        chunked, plain = (scan(name, chunk, backward) for name in ("chunked", "recurrent"))
        shapes = product_shapes(chunk, neurons, width, backward)
        count = -(-length // chunk)
        work = 2 * count * sum(a * b * c for a, b, c in shapes)

        calls = {"products": products(shapes, count), "chunked": lambda f=chunked: f(*arrays)}
        against_matrix = measure.interleave(calls, options.rounds, f"{direction}: chunked and products")
        calls = {"plain": lambda f=plain: f(*arrays), "chunked": lambda f=chunked: f(*arrays)}
        against_plain = measure.interleave(calls, options.plain_rounds, f"{direction}: chunked and plain scan")

        faster = measure.ratios(against_plain["plain"], against_plain["chunked"])
        fraction = measure.ratios(against_matrix["products"], against_matrix["chunked"])
        times = {
            "plain scan": measure.summary(against_plain["plain"]),
            "chunked": measure.summary(against_matrix["chunked"]),
            "bare products": measure.summary(against_matrix["products"]),
        }
        rows += [
            [direction, name, time.format(1e3), f"{work / time.median / 1e9:.0f}" if name != "plain scan" else ""]
            for name, time in times.items()
        ]
        rows += [
            ["", "plain ÷ chunked", faster.format(), f"≥ {claim:g}  {'holds' if faster.median >= claim else 'MISSED'}"],
            [
                "",
                "chunked's share of the matrix rate",
                fraction.format(digits=2),
                f"≥ {MATRIX_CLAIM:g}  {'holds' if fraction.median >= MATRIX_CLAIM else 'MISSED'}",
            ],
        ]
        results[direction] = {
            "seconds": {name: time._asdict() for name, time in times.items()},
            "plain_over_chunked": faster._asdict(),
            "share_of_matrix_rate": fraction._asdict(),
            "claims": {"plain_over_chunked": claim, "share_of_matrix_rate": MATRIX_CLAIM},
            "flops": work,
        }
    measure.report(
        f"fast_weight_scan, T {length}, K {neurons}, D {width}, chunks of {chunk}, float32, {jax.devices()[0].device_kind}",
        ["direction", "", "ms, median (min–max), or ratio", "GFLOP/s, or claim"],
        rows,
        "Ratios are medians over rounds in which both sides ran one after the other.",
    )
    measure.write_json(options.json, {"config": vars(options) | {"json": None}, "results": results})


if __name__ == "__main__":
    main()
