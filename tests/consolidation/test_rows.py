"""Consolidation functions against their formulas, written out in NumPy."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig, consolidation
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import from_config_dict, to_config_dict
from bdh_jax.consolidation import ConsolidationError
from bdh_jax.consolidation.config import ConsolidationConfig
from bdh_jax.parallel.axes import RULES, shardings
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from tests.compiled import apply, init

# tests/consolidation/test_least_squares.py has those that need more of a state than the Hebbian rule keeps.
NAMES = sorted(set(consolidation.FUNCTIONS.names()) - {"kalman", "least_squares", "null_space"})
LAYERS, BATCH, HEADS, NEURONS, WIDTH = 2, 4, 2, 16, 8
ROWS = HEADS * NEURONS


def config(**fast):
    return BDHConfig(
        vocab_size=20,
        n_layer=LAYERS,
        d_model=WIDTH,
        n_head=HEADS,
        n_neurons=ROWS,
        dropout=0.0,
        init_std=0.3,
        fast=FastWeightConfig(**{"synapse": True, **fast}),
    )


@pytest.fixture(scope="module")
def episode():
    """A model's slow weights with a synapse that is not zero, and the state after an episode."""
    return make_episode(config())


def make_episode(model_config, seed=0):
    model = BDH(model_config)
    tokens = jax.random.randint(jax.random.key(seed + 1), (BATCH, 12), 0, 20)
    slow = init(model, 0)
    if "synapse" in slow:
        slow["synapse"] = 0.1 * jax.random.normal(jax.random.key(2), slow["synapse"].shape)
    return slow, apply(model, slow, tokens).fast


def run(function, slow, fast, episodes=1):
    consolidator = consolidation.make_consolidator(function, slow, fast)
    history = consolidator.init(slow)
    for _ in range(episodes):
        slow, history = consolidator(slow, fast, fast.activity, history)
    return slow, history


def mean_of(fast):
    return np.asarray(fast.memory, np.float64).mean(axis=1)


def change(before, after, name="synapse"):
    return np.asarray(after[name], np.float64) - np.asarray(before[name], np.float64)


def close(actual, expected):
    # One float32 rounding of sums of a few numbers of order 1.
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def best_rows(scores, count):
    """The ``count`` rows of each layer with the largest scores [L, H, N], as bool [L, H, N]."""
    chosen = np.zeros(scores.shape, bool)
    for layer in range(len(scores)):
        for index in sorted(range(ROWS), key=lambda i: -scores[layer].ravel()[i])[:count]:
            chosen[layer].ravel()[index] = True
    return chosen


def test_none_changes_nothing(episode):
    slow, fast = episode
    after = consolidation.none()(slow, fast, fast.activity)
    assert all(after[name] is slow[name] for name in slow)


def test_dense_adds_the_mean_state(episode):
    slow, fast = episode
    after, _ = run(consolidation.dense(0.25), slow, fast)
    close(change(slow, after), 0.25 * mean_of(fast))
    assert all(np.array_equal(after[name], slow[name]) for name in slow if name != "synapse")


def test_decoder_target_sums_the_layers(episode):
    slow, fast = episode
    after, _ = run(consolidation.dense(0.5, target="decoder"), slow, fast)
    close(change(slow, after, "decoder"), 0.5 * mean_of(fast).sum(axis=0))
    assert np.array_equal(after["synapse"], slow["synapse"])


@pytest.mark.parametrize("score", ["state_norm", "strength", "energy"])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_row_topk_writes_the_best_rows_and_no_other(episode, score, fraction):
    slow, fast = episode
    mean = mean_of(fast)
    scores = {
        "state_norm": np.linalg.norm(mean, axis=-1),
        "strength": np.asarray(fast.activity.strength).mean(axis=1),
        "energy": np.asarray(fast.activity.energy).mean(axis=1),
    }[score]
    after, _ = run(consolidation.row_topk(fraction, 0.5, score), slow, fast)
    chosen = best_rows(scores, max(1, int(fraction * ROWS)))
    close(change(slow, after), np.where(chosen[..., None], 0.5 * mean, 0))
    assert np.array_equal(np.asarray(after["synapse"])[~chosen], np.asarray(slow["synapse"])[~chosen])


def test_row_bottom_writes_the_least_of_the_rows_in_use(episode):
    slow, fast = episode
    # One row that nothing was written to: it has nothing to give and is not chosen.
    fast = fast.map_memory(lambda memory: memory.at[:, 0, 3].set(0))
    norms = np.linalg.norm(mean_of(fast), axis=-1)
    after, _ = run(consolidation.row_bottom(0.1, 1.0), slow, fast)
    chosen = best_rows(np.where(norms > 0, -norms, -np.inf), 3)
    close(change(slow, after), np.where(chosen[..., None], mean_of(fast), 0))
    assert chosen.sum() == 3 * LAYERS
    assert not chosen[:, 0, 3].any()


def test_row_random_draws_anew_each_episode_and_again_the_same(episode):
    slow, fast = episode
    function = consolidation.row_random(0.25, 1.0, seed=3)
    memory = function.init(slow)
    update, draws = jax.jit(function.update), []
    for _ in range(200):
        after, memory = update(slow, fast, fast.activity, memory)
        draws.append((np.asarray(after["synapse"]) != np.asarray(slow["synapse"])).any(axis=-1))
    draws = np.array(draws)
    assert (draws.sum(axis=(2, 3)) == ROWS // 4).all()
    # Each row is drawn in a quarter of 200 episodes: 50 ± 6.1; five standard deviations for 64 rows.
    assert np.abs(draws.sum(axis=0) - 50).max() < 31
    assert not np.array_equal(draws[0], draws[1])
    again, _ = run(function, slow, fast)
    assert np.array_equal(np.asarray(again["synapse"] != slow["synapse"]).any(axis=-1), draws[0])
    other, _ = run(consolidation.row_random(0.25, 1.0, seed=4), slow, fast)
    assert not np.array_equal(np.asarray(other["synapse"] != slow["synapse"]).any(axis=-1), draws[0])


def test_threshold_writes_what_is_near_the_largest(episode):
    slow, fast = episode
    norms = np.linalg.norm(mean_of(fast), axis=-1)
    after, _ = run(consolidation.threshold(0.5, 1.0), slow, fast)
    chosen = norms >= 0.5 * norms.max(axis=(1, 2), keepdims=True)
    assert 1 < chosen[0].sum() < ROWS
    close(change(slow, after), np.where(chosen[..., None], mean_of(fast), 0))


def test_running_average_is_a_moving_average(episode):
    slow, fast = episode
    after, _ = run(consolidation.running_average(0.25), slow, fast, episodes=2)
    expected = 0.75 * (0.75 * np.asarray(slow["synapse"]) + 0.25 * mean_of(fast)) + 0.25 * mean_of(fast)
    close(np.asarray(after["synapse"]), expected)


def test_tfidf_prefers_rows_that_other_episodes_do_not_use(episode):
    slow, fast = episode
    function = consolidation.tfidf_rows(0.1, 1.0)
    strength = np.asarray(fast.activity.strength, np.float64).mean(axis=1)
    share = strength / strength.max(axis=(1, 2), keepdims=True)
    first, memory = run(function, slow, fast)
    close(change(slow, first), np.where(best_rows(strength, 3)[..., None], mean_of(fast), 0))
    close(np.asarray(memory["row_use"]), share)
    # A second episode over other rows: those that the first used most are now common, hence chosen last.
    _, other = make_episode(config(), seed=7)
    second, memory = function.update(slow, other, other.activity, memory)
    strength2 = np.asarray(other.activity.strength, np.float64).mean(axis=1)
    scores = strength2 / strength2.sum(axis=(1, 2), keepdims=True) * np.log(2 / (share + 1))
    assert not np.array_equal(best_rows(scores, 3), best_rows(strength2, 3))
    close(change(slow, second), np.where(best_rows(scores, 3)[..., None], mean_of(other), 0))
    assert memory["episodes"] == 2


def test_importance_protects_rows_of_earlier_episodes(episode):
    slow, fast = episode
    energy = np.asarray(fast.activity.energy, np.float64).mean(axis=1)
    importance = energy / energy.mean(axis=(1, 2), keepdims=True)
    first, _ = run(consolidation.importance_weighted(0.5, 2.0), slow, fast)
    close(change(slow, first), 0.5 * mean_of(fast))
    second, memory = run(consolidation.importance_weighted(0.5, 2.0), slow, fast, episodes=2)
    close(change(first, second), 0.5 * mean_of(fast) / (1 + 2 * importance)[..., None])
    close(np.asarray(memory["row_importance"]), 2 * importance)


def test_cascade_follows_its_equations(episode):
    slow, fast = episode
    after, memory = run(consolidation.cascade(0.5, levels=3, ratio=2.0), slow, fast, episodes=5)
    u = [np.asarray(slow["synapse"], np.float64), 0, 0]
    for _ in range(5):
        v = [u[0] + 0.5 * mean_of(fast), u[1], u[2]]
        u = [
            v[0] + (v[1] - v[0]) / 4,
            v[1] + ((v[0] - v[1]) / 4 + (v[2] - v[1]) / 8) / 2,
            v[2] + ((v[1] - v[2]) / 8 + (0 - v[2]) / 16) / 4,
        ]
    close(np.asarray(after["synapse"]), u[0])
    close(np.asarray(memory["levels"]), np.stack(u[1:]))


def test_cascade_forgets_more_slowly_than_an_exponential(episode):
    """One write and 63 empty episodes: what is left at age 16 and 64 differs by about √4, not by a constant to the 48th."""
    slow, fast = episode
    slow = {**slow, "synapse": jnp.zeros_like(slow["synapse"])}
    function = consolidation.cascade(1.0, levels=6)
    memory = function.init(slow)
    kept = []
    for age in range(64):
        slow, memory = function.update(slow, fast if age == 0 else fast.reset(), fast.activity, memory)
        kept.append(float(jnp.linalg.norm(slow["synapse"])))
    assert 1.5 < kept[15] / kept[63] < 4


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_at_norm_keeps_the_direction(episode, name):
    slow, fast = episode
    function = consolidation.FUNCTIONS.get(name, "function")()
    plain, _ = run(function, slow, fast)
    scaled, _ = run(consolidation.at_norm(function, 0.3), slow, fast)
    direction, result = change(slow, plain), change(slow, scaled)
    # The change is small beside the synapse, so its rounding is that of the synapse: 1e-7 of a norm of order 10.
    assert np.linalg.norm(result) == pytest.approx(0.3 * np.linalg.norm(mean_of(fast)), rel=1e-4)
    assert np.sum(direction * result) / np.linalg.norm(direction) / np.linalg.norm(result) > 1 - 1e-5


@pytest.mark.parametrize("name", ["dense", "row_topk", "importance_weighted"])
def test_scaled_multiplies_the_change_and_remembers_the_same(episode, name):
    slow, fast = episode
    function = consolidation.FUNCTIONS.get(name, "function")()
    plain, history = run(function, slow, fast)
    scaled, scaled_history = run(consolidation.scaled(function, -0.5), slow, fast)
    close(change(slow, scaled), -0.5 * change(slow, plain))
    chex.assert_trees_all_equal(scaled_history, history)
    assert [key for key in slow if key != "synapse" and not np.array_equal(scaled[key], slow[key])] == []
    with pytest.raises(ConfigError, match="rate=nan must be a finite number"):
        consolidation.scaled(function, float("nan"))


def test_at_norm_of_no_change_is_no_change(episode):
    slow, fast = episode
    after, _ = run(consolidation.at_norm(consolidation.none(), 0.3), slow, fast)
    np.testing.assert_array_equal(after["synapse"], slow["synapse"])
    after, _ = run(consolidation.at_norm(consolidation.dense(), 0.3), slow, fast.reset())
    np.testing.assert_array_equal(after["synapse"], slow["synapse"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_every_function_can_write_the_decoder(episode, name):
    """And nothing else. Two episodes, so that what is remembered is used."""
    slow, fast = episode
    after, _ = run(consolidation.FUNCTIONS.get(name, "function")(target="decoder"), slow, fast, episodes=2)
    assert [key for key in slow if not np.array_equal(after[key], slow[key])] == ["decoder"]


def test_functions_that_remember_rows_see_the_decoder_s_rows(episode):
    """All layers share them: importance is that of the layers together."""
    slow, fast = episode
    after, memory = run(consolidation.importance_weighted(0.5, 2.0, target="decoder"), slow, fast, episodes=2)
    energy = np.asarray(fast.activity.energy, np.float64).mean(axis=1).sum(axis=0)
    importance = energy / energy.mean()
    close(np.asarray(memory["row_importance"]), 2 * importance[None])
    expected = 0.5 * mean_of(fast).sum(axis=0) * (1 + 1 / (1 + 2 * importance))[..., None]
    close(change(slow, after, "decoder"), expected)


# Batches


def test_example_weights_choose_examples(episode):
    slow, fast = episode
    one = jnp.array([0.0, 0.0, 2.0, 0.0])
    after, _ = run(consolidation.row_topk(0.2, 1.0, example_weights=one), slow, fast)
    alone, _ = run(consolidation.row_topk(0.2, 1.0), slow, fast.select([2]))
    np.testing.assert_array_equal(after["synapse"], alone["synapse"])


def test_example_weights_may_come_from_the_activity(episode):
    slow, fast = episode
    fast = fast.replace(count=jnp.array([1.0, 2.0, 3.0, 2.0]))
    after, _ = run(consolidation.dense(1.0, example_weights=lambda activity: activity.count), slow, fast)
    weights = np.array([1, 2, 3, 2]) / 8
    close(change(slow, after), np.einsum("lbhnd,b->lhnd", np.asarray(fast.memory, np.float64), weights))


def test_wrong_number_of_example_weights_is_named(episode):
    slow, fast = episode
    with pytest.raises(ConsolidationError, match=r"example_weights has shape \(3,\).*batch of 4"):
        consolidation.dense(example_weights=jnp.ones(3))(slow, fast, fast.activity)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scope", ["layer", "shared"])
def test_the_batch_mean_serves_as_well_as_the_whole_state(name, scope):
    model_config = config(scope=scope)
    model = BDH(model_config)
    tokens = jax.random.randint(jax.random.key(1), (BATCH, 12), 0, 20)
    slow = init(model, 0)
    full, mean = (apply(model, slow, tokens, state=kind).fast for kind in ("full", "mean"))
    function = consolidation.FUNCTIONS.get(name, "function")()
    (a, _), (b, _) = run(function, slow, full), run(function, slow, mean)
    close(np.asarray(a["synapse"]), np.asarray(b["synapse"]))


def test_the_batch_mean_of_mesa_serves_as_well_as_the_whole_state():
    """Which is one regression on the sums of all examples, and no mean of regressions."""
    model = BDH(config(rule="mesa", options={"ridge": 0.1}))
    tokens = jax.random.randint(jax.random.key(1), (BATCH, 12), 0, 20)
    slow = init(model, 0)
    full, mean = (apply(model, slow, tokens, state=kind).fast for kind in ("full", "mean"))
    (a, _), (b, _) = (run(consolidation.dense(1.0), slow, fast) for fast in (full, mean))
    np.testing.assert_allclose(a["synapse"], b["synapse"], rtol=1e-3, atol=1e-4)  # a solution, of condition 1/ridge
    gram, memory = (np.asarray(leaf, np.float64).mean(axis=1) for leaf in (full.gram, full.memory))
    solved = np.linalg.solve(gram + 0.1 * np.eye(ROWS), memory.reshape(LAYERS, ROWS, WIDTH))
    np.testing.assert_allclose(change(slow, a).reshape(solved.shape), solved, rtol=1e-3, atol=1e-4)


def test_the_norm_of_no_change_has_a_gradient(episode):
    slow, fast = episode
    nothing = fast.reset()
    function = consolidation.at_norm(consolidation.dense(), 1.0)

    def size(memories):
        written = nothing.with_memories(memories)
        changed = consolidation.as_consolidation(function).update(slow, written, fast.activity, ())[0]
        return jnp.sum(changed["synapse"])

    gradients = jax.tree.leaves(jax.jit(jax.grad(size))(nothing.memories()))
    assert len(gradients) == LAYERS
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_what_was_written_is_read_after_a_reset(episode):
    """With rate 1 and one example, a fresh state with the new synapse reads what the old state held."""
    slow, fast = episode
    slow = {**slow, "synapse": jnp.zeros_like(slow["synapse"])}
    fast = fast.select([1])
    after, _ = run(consolidation.dense(1.0), slow, fast)
    model, token = BDH(config()), jnp.array([[5]])
    kept = fast.reset().with_memories(fast.memories())
    expected = apply(model, slow, token, kept).logits
    close(np.asarray(apply(model, after, token).logits), np.asarray(expected))
    assert np.abs(expected - apply(model, slow, token).logits).max() > 1e-2


# On a mesh


@pytest.mark.parametrize("name", NAMES)
def test_a_mesh_writes_the_same_rows(name):
    slow, fast = make_episode(config())
    model, mesh = BDH(config()), make_mesh(MeshConfig(data=2, neurons=4))
    function = consolidation.FUNCTIONS.get(name, "function")()
    expected, memory = run(function, slow, fast, episodes=2)
    slow_there, fast_there = (
        jax.device_put(tree, shardings(declared, mesh))
        for tree, declared in ((slow, model.declared_slow()), (fast, model.declared_fast(BATCH)))
    )
    assert not slow_there["synapse"].sharding.is_fully_replicated
    after, memory_there = run(function, slow_there, fast_there, episodes=2)
    np.testing.assert_array_equal(
        np.asarray(after["synapse"] != slow["synapse"]).any(-1), np.asarray(expected["synapse"] != slow["synapse"]).any(-1)
    )
    for there, here in zip(jax.tree.leaves((after, memory_there)), jax.tree.leaves((expected, memory)), strict=True):
        close(np.asarray(there), np.asarray(here))


# Names, options, errors


def test_every_factory_has_a_name():
    for name in consolidation.FUNCTIONS.names():
        factory = consolidation.FUNCTIONS.get(name, "function")
        assert getattr(consolidation, name) is factory
        assert factory.__doc__


def test_configuration_builds_what_it_names(episode):
    slow, fast = episode
    settings = ConsolidationConfig(function="row_topk", options={"fraction": 0.2, "rate": 0.5})
    a, _ = run(consolidation.from_config(settings), slow, fast)
    b, _ = run(consolidation.row_topk(0.2, 0.5), slow, fast)
    np.testing.assert_array_equal(a["synapse"], b["synapse"])
    assert from_config_dict(ConsolidationConfig, to_config_dict(settings)) == settings
    c, _ = run(consolidation.from_config(dataclasses.replace(settings, norm=0.3)), slow, fast)
    d, _ = run(consolidation.at_norm(consolidation.row_topk(0.2, 0.5), 0.3), slow, fast)
    np.testing.assert_array_equal(c["synapse"], d["synapse"])
    assert not np.array_equal(c["synapse"], a["synapse"])
    with pytest.raises(ConfigError, match='norm=0.3 scales a change.*"none" makes none'):
        consolidation.from_config(ConsolidationConfig(norm=0.3))


def halve(slow, fast, activity):
    return {**slow, "synapse": slow["synapse"] / 2}


NOT_A_FUNCTION = 3


def test_your_own_function_by_module_and_name(episode):
    slow, fast = episode
    after, _ = run(consolidation.make_function(f"{__name__}:halve"), slow, fast)
    np.testing.assert_array_equal(after["synapse"], slow["synapse"] / 2)


def scale(slow, fast, activity, *, by: float = 0.5):
    return {**slow, "synapse": by * slow["synapse"]}


def scaling(by: float = 0.5):
    return lambda slow, fast, activity: {**slow, "synapse": by * slow["synapse"]}


@consolidation.factory
def scaling_by_three(first, second, third):
    return scaling(first * second * third)


def returns_nothing(by: float = 0.5):
    return None


SCALING = consolidation.Consolidation(lambda slow: (), lambda slow, fast, activity, history: (slow, history))


@pytest.mark.parametrize("name", ["scale", "scaling"])
def test_your_own_function_or_factory_takes_options(episode, name):
    """A function is known by its first three parameters; anything else makes one."""
    slow, fast = episode
    for options, factor in (({}, 0.5), ({"by": 0.25}, 0.25)):
        after, _ = run(consolidation.make_function(f"{__name__}:{name}", **options), slow, fast)
        np.testing.assert_array_equal(after["synapse"], factor * slow["synapse"])


def test_a_factory_that_is_marked_is_none_of_the_functions(episode):
    slow, fast = episode
    function = consolidation.make_function(f"{__name__}:scaling_by_three", first=0.5, second=0.5, third=1)
    after, _ = run(function, slow, fast)
    np.testing.assert_array_equal(after["synapse"], 0.25 * slow["synapse"])


def test_a_pair_of_your_own_is_taken_as_it_is():
    assert consolidation.make_function(f"{__name__}:SCALING") is SCALING


@pytest.mark.parametrize("name", consolidation.FUNCTIONS.names())
def test_every_history_says_how_it_is_spread(name):
    """An axis for every dimension of every array: "row" is whole on every device, "neuron" is split."""
    for options in ({}, {"target": "decoder"}) if name in NAMES and name != "none" else ({},):
        function = consolidation.as_consolidation(consolidation.FUNCTIONS.get(name, "function")(**options))
        slow = init(BDH(config()), 0)
        history = function.init(slow)
        assert (function.axes is not None) == bool(jax.tree.leaves(history))
        if function.axes is not None:
            axes = function.axes(slow)
            jax.tree.map(lambda leaf, names: np.testing.assert_equal(len(names), leaf.ndim), history, axes)
            assert all(name in RULES for names in axes.values() for name in names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: consolidation.make_function(f"{__name__}:scale", to=1.0), "has no option 'to'. Its options: by"),
        (lambda: consolidation.make_function(f"{__name__}:scale", by="much"), "by='much' is a str, expected float"),
        (
            lambda: consolidation.make_function(f"{__name__}:scaling_by_three", first=1),
            "missing a required argument: 'second'",
        ),
        (
            lambda: consolidation.make_function(f"{__name__}:returns_nothing"),
            "what it returned: None is no consolidation function",
        ),
        (lambda: consolidation.make_function(f"{__name__}:SCALING", by=1.0), "has no option 'by': it is made already"),
        (
            lambda: consolidation.make_function("row_top"),
            r"function='row_top' is not a consolidation function.*row_topk.*module:name",
        ),
        (lambda: consolidation.make_function("dense", fraction=0.1), "'dense' has no option 'fraction'.*rate, target"),
        (lambda: consolidation.make_function("none", rate=0.1), "'none' has no option 'rate'.*none"),
        (lambda: consolidation.make_function("no_such_module:f"), "there is no module .no_such_module."),
        (lambda: consolidation.make_function("json:f"), "'json' has no 'f'"),
        (lambda: consolidation.make_function("json:dumps", rate=1.0), "'json:dumps' cannot be called with the options"),
        (lambda: consolidation.make_function(f"{__name__}:NOT_A_FUNCTION"), "3 is no consolidation function"),
        (lambda: consolidation.row_topk(0.0), r"fraction=0.0 must lie in \(0, 1\]"),
        (lambda: consolidation.row_topk(1.5), "fraction=1.5"),
        (lambda: consolidation.row_random(-1.0), "fraction=-1.0"),
        (lambda: consolidation.tfidf_rows(2.0), "fraction=2.0"),
        (lambda: consolidation.row_topk(score="size"), "score='size'.*strength.*energy.*state_norm"),
        (lambda: consolidation.dense(target="embed"), "target='embed'.*synapse.*decoder"),
        (lambda: consolidation.threshold(2.0), "level=2.0"),
        (lambda: consolidation.running_average(0.0), "rate=0.0"),
        (lambda: consolidation.importance_weighted(protection=-1.0), "protection=-1.0"),
        (lambda: consolidation.cascade(levels=1), "levels=1"),
        (lambda: consolidation.cascade(ratio=0.5), "ratio=0.5"),
        (lambda: consolidation.at_norm(consolidation.dense(), 0.0), "norm=0.0"),
        (lambda: ConsolidationConfig(every=0), "consolidation.every=0"),
        (lambda: consolidation.make_function(".relative:f"), "'.relative' cannot be imported"),
        *(
            (lambda name=name: consolidation.make_function(name, rate=float("nan")), "rate=nan must")
            for name in NAMES
            if name != "none"
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises((ConfigError, ConsolidationError), match=message):
        make()


def test_a_model_without_synapse_says_how_to_get_one():
    slow, fast = make_episode(config(synapse=False))
    with pytest.raises(ConsolidationError, match="no 'synapse'.*synapse=True"):
        consolidation.dense()(slow, fast, fast.activity)
    run(consolidation.dense(target="decoder"), slow, fast)


def test_a_model_without_fast_weights_has_nothing_to_consolidate():
    slow, fast = make_episode(config(enabled=False, synapse=False))
    with pytest.raises(ConsolidationError, match="nothing to consolidate"):
        consolidation.make_consolidator(consolidation.none(), slow, fast)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s, f, a: {k: v for k, v in s.items() if k != "decoder"}, r"no slow\['decoder'\]"),
        (lambda s, f, a: {**s, "extra": s["embed"]}, r"slow\['extra'\], which it was not given"),
        (
            lambda s, f, a: {**s, "synapse": s["synapse"][:1]},
            r"slow\['synapse'\] with shape \(1, 2, 16, 8\).*\(2, 2, 16, 8\)",
        ),
        (lambda s, f, a: {**s, "synapse": s["synapse"].astype(jnp.bfloat16)}, r"slow\['synapse'\] as bfloat16.*float32"),
        (lambda s, f, a: tuple(s.values()), r"no slow\['decoder'\]"),
        (lambda s, f, a: s if f.memory.sum() > 0 else {**s}, "not jittable"),
        (lambda s, f, a: {**s, "synapse": s["synapse"] + float(f.memory.sum())}, "not jittable"),
        (lambda s, f, a: {**s, "synapse": jnp.asarray(np.asarray(f.memory).mean(1))}, "not jittable"),
        (lambda s, f, a: {**s, "synapse": s["synapse"] + f.memory[f.memory > 0].sum()}, "not jittable"),
        (lambda s, f, a: {**s, "synapse": s["synapse"] * len(range(f.position[0]))}, "not jittable"),
        (consolidation.row_topk, r"row_topk makes a consolidation function and is none itself: call it, row_topk\(...\)"),
        (consolidation.Consolidation(lambda s: (), lambda s, f, a, m: s), "pair"),
        (consolidation.Consolidation(lambda s: jnp.zeros(3), lambda s, f, a, m: (s, m[:2])), r"history with shape \(2,\)"),
        ("dense", "'dense' is no consolidation function"),
        (lambda slow, fast: slow, r"cannot be called as \(slow, fast, activity\) -> slow: too many positional arguments"),
    ],
)
def test_what_a_function_returns_is_checked(episode, function, message):
    slow, fast = episode
    with pytest.raises(ConsolidationError, match=message):
        consolidation.make_consolidator(function, slow, fast)


def test_a_number_that_is_not_finite_is_refused(episode):
    slow, fast = episode
    with jax.debug_nans(False):
        with pytest.raises(ConsolidationError, match=r"slow\['synapse'\] NaN or infinite.*smaller rate"):
            run(lambda s, f, a: {**s, "synapse": s["synapse"] + jnp.inf}, slow, fast)
        remembers = consolidation.Consolidation(lambda s: jnp.full(2, jnp.nan), lambda s, f, a, m: (s, m))
        with pytest.raises(ConsolidationError, match=r"history NaN or infinite \(already so before: history"):
            run(remembers, slow, fast)
        with pytest.raises(ConsolidationError, match=r"NaN or infinite \(already so before: slow\['decoder'\]"):
            run(consolidation.none(), {**slow, "decoder": slow["decoder"] * jnp.nan}, fast)
