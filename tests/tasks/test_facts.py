"""Facts against their definition."""

import numpy as np
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import from_config_dict, to_config_dict
from bdh_jax.tasks import FactsConfig, facts
from bdh_jax.tasks.facts import combinations


def task(**config):
    return FactsConfig(**config).make(seed=0, batch_size=8)


def pairs_of(keys):
    return set(map(tuple, np.asarray(keys).reshape(-1, 2).tolist()))


def test_kinds_of_keys_are_disjoint_and_complete():
    kinds = [pairs_of(getattr(combinations(), kind)) for kind in ("seen", "held_out", "known", "reserved")]
    assert len(set.union(*kinds)) == sum(map(len, kinds)) == facts.IDS**2
    tokens = set(combinations().seen.ravel().tolist())
    assert tokens == set(combinations().held_out.ravel().tolist())
    assert not tokens & set(combinations().new_ids.ravel().tolist())


def test_training_rows_are_facts_and_queries():
    """Parsed from the tokens alone: what is asked for was said, what is answered is its value, and keys are of training only."""
    train = task()
    batch = train.batch(3)
    seen = pairs_of(combinations().seen)
    assert batch.tokens.shape == (8, train.sequence_length) == (8, 3 * 16 + 2 * 8)
    for row in range(6):
        said = {tuple(fact[:2]): fact[2] for fact in batch.tokens[row, :48].reshape(16, 3).tolist()}
        assert len(said) == 16
        assert set(said) <= seen
        asked = [tuple(key) for key in batch.tokens[row, 48:].reshape(8, 2).tolist()]
        assert len(set(asked)) == 8
        assert batch.targets[row, 49::2].tolist() == [said[key] for key in asked]
        assert np.flatnonzero(batch.answer[row]).tolist() == list(range(49, 64, 2))
        np.testing.assert_array_equal(
            batch.targets[row, :-1][batch.answer[row, :-1] == 0], batch.tokens[row, 1:][batch.answer[row, :-1] == 0]
        )
    assert not batch.reset[:6].any()


def test_known_facts_stand_alone_and_never_in_the_input():
    batch = task(known=32, known_rows=3).batch(0)
    value = dict(zip(map(tuple, combinations().known[:32].tolist()), combinations().known_values[:32].tolist(), strict=True))
    for row in range(5, 8):
        keys = batch.tokens[row].reshape(-1, 2).tolist()
        assert batch.targets[row, 1::2].tolist() == [value[tuple(key)] for key in keys]
        assert batch.reset[row, 2::2].all()
        assert not batch.reset[row, 1::2].any()
    assert not pairs_of(batch.tokens[:5, :48].reshape(-1, 3)[:, :2]) & set(value)


class Twice(facts.Facts):
    """Asks for the last seen combination in one more row of every second batch."""

    def asked_rows(self, step):
        return super().asked_rows(step) + (step % 2 == 0)

    def asked(self, rng, step):
        keys, values, extra = super().asked(rng, step)
        if step % 2:
            return keys, values, extra
        one = np.broadcast_to(combinations().seen[-1], (1, self.asked_facts, 2))
        more = np.full((1, self.asked_facts), facts.FIRST_VALUE + 7, np.int32)
        return np.concatenate([keys, one]), np.concatenate([values, more]), {"rows": one}


def test_a_subclass_asks_for_facts_of_its_own():
    """In rows of their own, after the known ones; batches in which it asks for none have the same bits as without it."""
    config = FactsConfig(known=32, known_rows=1)
    plain, twice = config.make(seed=0, batch_size=8), Twice(config, seed=0, batch_size=8)
    for before, now in zip(plain.batch(1)[:6], twice.batch(1)[:6], strict=True):
        np.testing.assert_array_equal(before, now)
    assert plain.batch(0).extra is None
    batch = twice.batch(0)
    assert batch.extra["rows"].shape == (1, twice.asked_facts, 2)
    np.testing.assert_array_equal(batch.tokens[-1].reshape(-1, 2), batch.extra["rows"][0])
    assert (batch.targets[-1, 1::2] == facts.FIRST_VALUE + 7).all()
    assert batch.reset[-2:, 2::2].all()
    assert not batch.reset[:-2].any()


def test_batches_are_a_function_of_seed_and_step():
    first, again, other = task().batch(5), task().batch(5), task().batch(6)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).mean() > 0.5


def test_small_grids_make_keys_share_tokens():
    rng = np.random.default_rng(0)
    episodes = facts.sample_episodes(rng, "held_out", 20, pairs=4, queries=1, grid=8)
    assert pairs_of(episodes.keys) <= pairs_of(combinations().held_out)
    for keys in episodes.keys:
        assert len(np.unique(keys[:, 0])) <= 8
        assert len(np.unique(keys, axis=0)) == 4
    with pytest.raises(ValueError, match=r"grids of 2 × 2 tokens hold fewer than 5 keys of kind 'seen'"):
        facts.sample_episodes(rng, "seen", 1, pairs=5, queries=1, grid=2)


def test_evaluation_knows_its_answers():
    """An oracle that reads the facts scores 1 on every kind, and nothing on what stands nowhere in the input."""

    def oracle(tokens, valid):
        logits = np.zeros((*tokens.shape, facts.VOCABULARY), np.float32)
        for row, sequence in enumerate(tokens.tolist()):
            said = {tuple(sequence[i : i + 2]): sequence[i + 2] for i in range(0, len(sequence) - 2, 3)}
            logits[row, -1, said.get(tuple(sequence[-2:]), 0)] = 1
        return logits

    scores = {row.name: row for row in task(evaluation_sequences=24, known=16, known_rows=1).evaluate(oracle).rows}
    assert set(scores) == {"seen", "held_out", "new_ids", "known"}
    assert [scores[name].accuracy for name in ("seen", "held_out", "new_ids", "known")] == [1, 1, 1, 0]
    assert all(row.ceiling == 1 for row in scores.values())


def test_new_ids_get_the_statistics_of_trained_ones():
    rng = np.random.default_rng(0)
    embed = rng.normal(size=(facts.VOCABULARY, 4)).astype(np.float32)
    embed[: facts.IDS] += [5, 0, 0, -3]
    new = facts.initialise_new_ids(embed, seed=1)
    changed = np.flatnonzero((new != embed).any(axis=1))
    assert changed.tolist() == [*range(128, 160), *range(288, 320)]
    np.testing.assert_allclose(new[128:160].mean(axis=0), [5, 0, 0, -3], atol=0.8)
    np.testing.assert_allclose(new[288:320].mean(axis=0), np.zeros(4), atol=0.8)
    np.testing.assert_array_equal(new, facts.initialise_new_ids(embed, seed=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 0}, "task.pairs=0 must be at least 1"),
        ({"queries": 17}, "task.queries=17 must be at most task.pairs=16"),
        ({"grids": (5,)}, r"task.grids=\(5,\): each needs at least 32 combinations"),
        ({"grids": (33,)}, r"task.grids=\(33,\)"),
        ({"known": 513}, "task.known=513 must lie in 0 … 512"),
        ({"known": 0}, "task.known_rows=2 with task.known=0"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        FactsConfig(**change)


def test_known_rows_leave_room():
    with pytest.raises(ConfigError, match="known_rows=2 leave no row for episodes in a batch of train.batch_size=2"):
        FactsConfig(known_rows=2).make(seed=0, batch_size=2)


def test_grids_hold_enough_keys_to_evaluate_on():
    with pytest.raises(ConfigError, match=r"task.grids=\(8,\), task.pairs=32: grids of 8 × 8 .*fewer than 32 keys of kind"):
        FactsConfig(grids=(8,), pairs=32).make(seed=0, batch_size=8)


def test_configuration_survives_the_command_line():
    config = FactsConfig(grids=(7, 9), known=8)
    assert from_config_dict(FactsConfig, to_config_dict(config)) == config
