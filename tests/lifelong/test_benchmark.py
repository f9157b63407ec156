"""The lifelong benchmark: its learners against what they are said to be, its scores against a count by hand."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig, consolidation
from bdh_jax.analysis import probes
from bdh_jax.analysis.fast_states import empty_memory
from bdh_jax.config import ConfigError
from bdh_jax.console import show
from bdh_jax.lifelong import benchmark as lifelong
from bdh_jax.lifelong import bounds, controls, finished_rows, learners
from bdh_jax.lifelong import result as lifelong_result
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.lifelong.contestants import CONTESTANTS, LEAST_SQUARES_RIDGE, WRITE_RATES, Contestant, own_function
from bdh_jax.lifelong.preconditions import Preconditions, measure_preconditions, probe_episodes
from bdh_jax.lifelong.result import LifelongResult, interval
from bdh_jax.lifelong.stream import StreamConfig, make_stream
from bdh_jax.tasks.facts import VOCABULARY, combinations
from tests.compiled import apply, init

FAST = FastWeightConfig(synapse=True, address_source="gated", decay=0.9)
CONFIG = BDHConfig(
    vocab_size=VOCABULARY,
    n_layer=2,
    d_model=16,
    n_head=1,
    n_neurons=128,
    dropout=0.0,
    init_std=0.3,
    rope_theta=10.0,
    fast=FAST,
)
ONE_LAYER = dataclasses.replace(CONFIG, n_layer=1)
SIZES = LifelongConfig(stream=StreamConfig(facts=32, checkpoints=2), streams=2, known=8, reference="none")
PAIRS = SIZES.stream.pairs


@pytest.fixture(scope="module")
def model():
    return BDH(CONFIG)


@pytest.fixture(scope="module")
def slow(model):
    return init(model, 0)


@pytest.fixture(scope="module")
def shallow():
    """A model of one layer, and its slow weights."""
    return BDH(ONE_LAYER), init(BDH(ONE_LAYER), 0)


@pytest.fixture(scope="module")
def stream():
    return make_stream(SIZES.stream, seed=0)


def facts_of(stream, episode):
    return jnp.asarray(stream.tokens[episode].reshape(-1, 3))


def drive(learner, slow, stream):
    """The stream, episode by episode, without any of the benchmark's own code: slow weights and history at its end."""
    slow = learner.prepare(slow)
    history = learner.init(slow)
    update = jax.jit(learner.update)
    for episode in range(len(stream.facts)):
        output = apply(learner.model, slow, stream.tokens[episode][None], learner.start(history), collect=learner.collect)
        slow, history = update(slow, history, output, facts_of(stream, episode))
    return slow, history


def test_consolidation_sees_every_episode_and_nothing_else(model, slow, stream):
    """Of a function that adds S, the synapse is the sum of what each episode writes when it starts fresh beside that synapse."""
    learner = learners.consolidated(model, consolidation.dense(rate=0.5))
    after, _ = drive(learner, slow, stream)
    synapse = jnp.zeros_like(slow["synapse"])
    for tokens in stream.tokens:
        synapse = synapse + 0.5 * apply(model, {**slow, "synapse": synapse}, tokens[None]).fast.memory[:, 0]
    np.testing.assert_allclose(after["synapse"], synapse, atol=1e-5)
    assert learner.nbytes(after, ()) == 2 * 128 * 16 * 4


def test_never_reset_is_one_long_sequence(shallow, stream):
    model, slow = shallow
    learner = bounds.never_reset(model)
    _, history = drive(learner, slow, stream)
    whole = apply(learner.model, slow, stream.tokens.reshape(1, -1)).fast
    assert learner.model.config.fast.decay == 1
    for a, b in zip(jax.tree.leaves(history), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3, rtol=2e-3)
    keys = stream.keys[:3]
    one_by_one = [int(apply(learner.model, slow, key[None], whole).logits[0, -1].argmax()) for key in keys]
    assert jax.jit(learner.answer)(slow, history, jnp.asarray(keys)).tolist() == one_by_one


def test_ridge_reads_what_the_fast_weights_read(model, slow, stream):
    """With far fewer facts than neurons: at a key's address the synapse gives what S gives right after that fact was written."""
    keys, values = stream.keys[:12], stream.truth().value[:12]
    fit = jax.jit(bounds.ridge_synapse, static_argnums=0)
    synapse = fit(model, slow, jnp.asarray(keys), jnp.asarray(values))["synapse"]
    for layer in range(CONFIG.n_layer):
        below = {**slow, "synapse": synapse.at[layer:].set(0)}
        address = jax.jit(probes.addresses, static_argnums=0)(model, below, keys)[:, layer]
        for number in range(3):
            tokens = np.array([*keys[number], values[number]])[None]
            before = apply(model, below, tokens[:, :2]).fast
            written = apply(model, below, tokens[:, 2:], empty_memory(before)).fast.memory[layer, 0, 0]
            read, wanted = address[number] @ synapse[layer, 0], address[number] @ written
            assert jnp.linalg.norm(read - wanted) < 0.05 * jnp.linalg.norm(wanted)


def test_random_addresses_recall_by_ridge_what_sums_confuse(shallow, stream):
    """Of an untrained model: ridge recalls all, sums some, and sums in other rows nothing."""
    model, slow = shallow
    arena = functools.partial(lifelong._Arena, model, config=SIZES)
    unharmed = [lifelong._Unharmed(0.0, 0.0)]
    recall = {}
    for name in ("ridge_untrained", "dense_untrained"):
        recall[name] = arena(CONTESTANTS[name]).row([slow], unharmed, 1.0, [stream]).mean("recall")
    assert recall["ridge_untrained"] > 0.95
    assert 0.1 < recall["dense_untrained"] < recall["ridge_untrained"] - 0.1


def test_shuffling_keeps_rows_and_moves_them(model, slow, stream):
    learner = controls.shuffled(learners.consolidated(model, consolidation.dense(rate=1.0)))
    before, history = drive(learner, slow, stream)
    after = learner.finish(before, history, stream.keys, stream.truth().value)
    for layer in range(CONFIG.n_layer):
        old, new = (np.asarray(s["synapse"][layer, 0]) for s in (before, after))
        assert (old != new).any()
        np.testing.assert_array_equal(old[np.lexsort(old.T)], new[np.lexsort(new.T)])


def test_nearest_neighbour_keeps_the_latest_within_the_bytes(model, slow, stream):
    learner = bounds.nearest_neighbour(model)
    _, history = drive(learner, slow, stream)
    assert history["address"].shape == (31, 128)  # 16,384 bytes of synapse, 514 an entry
    assert learner.nbytes(slow, history) <= CONFIG.n_layer * 128 * 16 * 4
    latest = stream.written[-2:].ravel()[::-1][:31]
    assert history["value"].tolist() == latest.tolist()
    address = apply(model, slow, stream.tokens[-1][None], collect=("address",)).collected["address"]
    np.testing.assert_allclose(history["address"][0], address[0, 0, 0, -2], atol=1e-6)
    # Asked with stored addresses instead of fresh ones, it gives their values.
    nearest = jnp.argmax(history["address"] @ history["address"].T, axis=1)
    assert (history["value"][nearest] == history["value"]).mean() > 0.9


@pytest.mark.parametrize("target", ["synapse", "slow"])
def test_replay_learns_and_keeps_one_entry_a_key(shallow, stream, target):
    model, slow = shallow
    learner = learners.gradient(model, 0.03, target=target, replay=True, facts=32)
    after, history = drive(learner, slow, stream)
    buffer = np.asarray(history["buffer"])[: int(history["filled"])]
    assert len(buffer) == 32
    truth = dict(zip(map(tuple, stream.keys.tolist()), stream.truth().value.tolist(), strict=True))
    assert {(a, b): value for a, b, value in buffer.tolist()} == truth
    changed = {name for name in slow if (np.asarray(after[name]) != np.asarray(slow[name])).any()}
    assert changed == ({"synapse"} if target == "synapse" else set(slow) - {"synapse"})
    logits = [apply(model, weights, stream.keys).logits[:, -1] for weights in (slow, after)]
    before, learned = (optax.softmax_cross_entropy_with_integer_labels(x, stream.truth().value).mean() for x in logits)
    assert learned < before - 0.5


def test_fine_tuning_sees_the_episode_only(shallow, stream):
    model, slow = shallow
    learner = learners.gradient(model, 0.01, target="slow", replay=False, facts=32)
    assert "buffer" not in learner.init(slow)
    once, history = learner.update(slow, learner.init(slow), None, facts_of(stream, 0))
    assert int(history["steps"]) == learners.REPLAY_STEPS
    assert (np.asarray(once["decoder"]) != np.asarray(slow["decoder"])).any()


def played(stream, asked, **changes):
    """What a learner that gives these answers [2, F + known] at two checkpoints would have left."""
    shape = (2, len(stream.facts) // 2, PAIRS)
    probe = np.array([0.85, 0.75], np.float32)
    result = lifelong._Played(asked, asked[-1], np.ones(shape, bool), probe, probe[-1], np.array(True))
    return result._replace(**changes)


def test_scores_are_a_count(model, stream):
    truth = stream.truth()
    known = combinations().known_values[: SIZES.known]
    # Reassigned facts are answered with the old value, of the others every second one is right, and of the known all but two.
    given = np.where(truth.previous >= 0, truth.previous, np.where(np.arange(32) % 2, truth.value, 0))
    right = (truth.previous < 0) & (np.arange(32) % 2 == 1)
    given = np.concatenate([given, np.where(np.arange(8) < 6, known, 0)])
    in_episode = np.ones((2, len(stream.facts) // 2, PAIRS), bool)
    in_episode[0] = False
    in_episode[1, 0, :8] = False
    learner = learners.consolidated(model, consolidation.none())
    # Half-way, other answers: every third one is right then.
    half = stream.truth(len(stream.facts) // 2)
    early = np.where(np.arange(32) % 3, half.previous, half.value)
    early = np.concatenate([early, np.where(np.arange(8) < 3, known, 0)])
    result = played(stream, np.stack([early, given]), in_episode=in_episode)
    scores, course = lifelong._score(learner, stream, result, lifelong._Unharmed(0.95, 1.0), 1000, SIZES)
    assert scores["recall"] == right.mean()
    assert (scores["new_value"], scores["old_value"], scores["neither_value"]) == (0, 1, 0)
    assert scores["harm"] == pytest.approx(0.2)
    assert scores["harm_known"] == 0.25
    assert scores["in_episode"] == 1 - 0.5 / in_episode.shape[1]
    assert scores["bits_per_byte"] == pytest.approx((right.mean() - 1 / 64) / (1 - 1 / 64) * 32 * 6 / 1000)
    age = len(stream.facts) - 1 - truth.last
    assert scores["age_0"] == right[age == 0].mean()
    assert scores["age_1+"] == right[age >= 1].mean()
    assert scores["kind_new_ids"] == right[stream.kind == 2].mean()
    shown, reassigned, right = half.value >= 0, half.previous >= 0, early[:32] == half.value
    age = len(stream.facts) // 2 - 1 - half.last
    assert (~shown).any()
    for name, where in {
        "recall": shown,
        "new_value": reassigned,
        "age_0": shown & (age == 0),
        "age_1+": shown & (age >= 1),
        "kind_new_ids": shown & (stream.kind == 2),
    }.items():
        assert where.any()
        assert course[name][0] == pytest.approx(right[where].mean()), name
    assert course["old_value"][0] == pytest.approx((early[:32] == half.previous)[reassigned].mean())
    assert course["in_episode"] == [0, scores["in_episode"]]
    assert course["harm"] == pytest.approx([0.1, 0.2])
    assert course["harm_known"] == [0.625, 0.25]
    assert {name: values[1] for name, values in course.items()} == {name: scores[name] for name in course}


@pytest.fixture(scope="module")
def result(shallow):
    model, slow = shallow
    names = ("none", "dense", "dense_shuffled", "nearest_neighbour")
    contestants = {name: CONTESTANTS[name] for name in names}
    return lifelong.benchmark(model, [slow, init(model, 1)], contestants, config=SIZES, rates={"dense": 0.25})


def test_rows_hold_every_model_and_stream(result):
    assert [row.name for row in result.rows] == ["none", "dense", "dense_shuffled", "nearest_neighbour"]
    assert [row.rate for row in result.rows] == [None, 0.25, 0.25, None]
    for row in result.rows:
        assert all(array.shape == (2, 2, 2) for array in row.course.values())
        assert all(array.shape == (2, 2) for array in row.scores.values())
        for score in ("recall", "old_value", "harm", "harm_known", "kind_seen"):
            np.testing.assert_array_equal(row.course[score][..., -1], row.scores[score])
        assert np.isnan(row.course["recall"][..., 0]).all() == (row.name == "dense_shuffled")
        assert np.isnan(row.course["harm"][..., 0]).all() == (row.name in ("dense_shuffled", "nearest_neighbour"))
        assert np.isnan(row.course["in_episode"]).all() == (row.name == "nearest_neighbour")
    none = result.rows[0]
    assert not none.scores["harm"].any()
    assert not none.scores["harm_known"].any()
    assert np.isnan(result.rows[-1].scores["harm"]).all()
    assert none.facts_so_far[:, -1].tolist() == [32, 32]


def test_an_untrained_model_does_not_meet_the_preconditions_and_the_table_says_so(result, text_of):
    assert len(result.preconditions) == 2
    assert any("in-episode recall of seen keys" in failure for failure in result.preconditions[0].failures)
    assert result.preconditions[0].dead_keys == 0
    assert result.preconditions[0].ridge[128] > 0.9
    assert "PRECONDITION NOT MET, model 0: in-episode" in text_of(result.table())
    preconditions = " ".join(text_of(result.preconditions_table()).split())
    assert "NOT MET, model 0: in-episode" in preconditions
    assert "Train it for more steps" in preconditions


def test_preconditions_that_are_met_say_so(result, text_of):
    perfect = {"in_episode": dict.fromkeys(("seen", "held_out", "new_ids"), 1.0), "ridge": {128: 1.0, 256: 1.0}}
    met = dataclasses.replace(result, preconditions=(dataclasses.replace(result.preconditions[0], **perfect),))
    text = " ".join(text_of(met.preconditions_table()).split())
    assert "All are met" in text
    assert "NOT MET" not in text


def test_dead_keys_are_counted(shallow):
    """An embedding of zero has no code, so no key that ends in it has an address."""
    model, slow = shallow
    silent = {**slow, "embed": slow["embed"].at[160].set(0)}
    measured = measure_preconditions(model, silent, silent, SIZES.stream, seed=SIZES.seed)
    assert measured.dead_keys == 128
    assert "128 keys have no address in some layer" in measured.failures


@pytest.fixture
def text_of(capsys, monkeypatch):
    """What is printed of a table where there are 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def text(table):
        show(table)
        return capsys.readouterr().out

    return text


def test_tables_fit_80_columns_and_say_everything(result, text_of):
    course = {name: np.full((2, 2, 4), 1.0) for name in result.rows[1].course} | {"harm_known": np.full((2, 2, 4), 0.979)}
    wide = dataclasses.replace(result.rows[1], name="importance_weighted", rate=0.0003, course=course)
    result = dataclasses.replace(result, rows=(*result.rows, wide))
    for table in (result.table(), result.retention_table(), result.course_table(), result.preconditions_table()):
        text = text_of(table)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
    assert "importance_weighted" in text_of(result.course_table())
    assert "100 100 100 100" in text_of(result.course_table())
    main = text_of(result.table())
    for expected in (
        "importance_weighted",
        "0.0003",
        "Δ recall",
        "harm",
        "harm to known",
        "bits per byte",
        "2 models × 2 streams",
        "–",
    ):
        assert expected in main


def test_result_is_plain_json(result):
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["rows"][1]["rate"] == 0.25
    assert np.shape(record["rows"][1]["scores"]["recall"]) == (2, 2)
    assert record["rows"][3]["mean"]["harm"] is None
    assert record["config"]["stream"]["facts"] == 32


@pytest.mark.parametrize("key", ["preconditions", "gates"])
def test_a_result_is_read_back(result, text_of, key):
    record = json.loads(json.dumps(result.to_dict()))
    record[key] = record.pop("preconditions")
    again = LifelongResult.from_dict(record)
    assert again.config == result.config
    assert again.preconditions == result.preconditions
    assert text_of(again.table()) == text_of(result.table())
    assert again.to_dict() == result.to_dict()


def test_a_record_of_something_else_is_no_result():
    with pytest.raises(ValueError, match="a record with neurons, results in it is no result"):
        LifelongResult.from_dict({"neurons": 128, "results": []})


def test_figures_have_a_line_for_each_row(result):
    along, by_age = result.plot().axes
    names = [row.name for row in result.rows]
    for axes in (along, by_age):
        *lines, chance = axes.get_lines()
        assert [line.get_label() for line in lines] == names
        assert set(chance.get_ydata()) == {1 / 64}
    panels = result.plot_course().axes
    assert [panel.get_ylabel() for panel in panels] == [label for label, _ in lifelong_result.PANELS.values()]
    assert all(len(panel.get_lines()) == 4 for panel in panels)
    harm = list(lifelong_result.PANELS).index("harm_known")
    np.testing.assert_array_equal(panels[harm].get_lines()[1].get_ydata(), result.rows[1].along("harm_known"))


def test_playing_a_stream_agrees_with_driving_it_by_hand(shallow, stream):
    """Answer by answer, wrong ones included: an untrained model's are all wrong, but they follow from its synapse."""
    model, slow = shallow
    learner = learners.consolidated(model, consolidation.dense(rate=10.0))
    ends = (len(stream.facts) // 2, len(stream.facts))
    afters = [drive(learner, slow, stream._replace(facts=stream.facts[:e], written=stream.written[:e]))[0] for e in ends]
    tokens, _, answer = probe_episodes("reserved", PAIRS)
    guesses = [np.asarray(apply(model, after, tokens).logits.argmax(axis=-1)) for after in afters]
    probe = tokens, guesses[0], answer  # what it says half-way passes for right, which is not always what it says in the end
    known = combinations().known[:8]
    play = jax.jit(functools.partial(lifelong._play, learner))
    episodes = stream.tokens.reshape(2, -1, PAIRS, 3)
    result = play(slow, stream.keys, stream.truth().value, episodes, probe, known)
    ask = jax.jit(probes.answers, static_argnums=0)
    asked = jnp.concatenate([stream.keys, known])
    before = ask(model, slow, asked)
    for checkpoint, after in enumerate(afters):
        given = ask(model, after, asked)
        assert (given != before).mean() > 0.3
        np.testing.assert_array_equal(result.asked[checkpoint], given)
    np.testing.assert_array_equal(result.final, given)
    agreed = [float((guess == guesses[0])[answer].mean()) for guess in guesses]
    assert agreed[1] < 0.9
    np.testing.assert_allclose(result.probe, agreed, atol=1e-6)
    assert result.final_probe == result.probe[-1]


@pytest.mark.usefixtures("_met")
def test_run_takes_your_own_function(shallow):
    model, slow = shallow

    def mine(slow, fast, activity):
        return {**slow, "synapse": slow["synapse"] + 0.25 * consolidation.mean_state(fast, activity)}

    config = dataclasses.replace(SIZES, streams=1)
    result = lifelong.run(model, slow, mine, name="mine", beside=("none",), config=config, new_ids=None)
    assert [(row.name, row.rate) for row in result.rows] == [("mine", result.rows[0].rate), ("none", None)]
    assert result.rows[0].rate in WRITE_RATES
    assert result.rows[0].scores["recall"].shape == (1, 1)
    with pytest.raises(ConfigError, match="beside names 'nonsense'; valid names: none, dense"):
        lifelong.run(model, slow, mine, beside=("nonsense",))


OWN = {
    # Rate 4 of the first is rate 1 of the second: the change is a quarter of S.
    "scaled": (lambda slow, fast, activity: consolidation.dense(0.25)(slow, fast, activity), 4.0),
    "with a history": (consolidation.as_consolidation(consolidation.dense(0.25)), 4.0),
    "takes a rate": (lambda slow, fast, activity, rate=7.0: consolidation.dense(float(rate))(slow, fast, activity), 1.0),
    "factory": (consolidation.dense, 1.0),
}


RATES = (0.01, 0.1, 1.0)
MET = Preconditions(0, dict.fromkeys(("seen", "held_out", "new_ids"), 1.0), {128: 1.0}, {128: 1.0}, (1.0,), 1.0)


@pytest.fixture
def _met(monkeypatch):
    """What a model has to meet is not measured: that takes longer than a short stream."""
    monkeypatch.setattr(lifelong, "measure_preconditions", lambda *arguments, **more: MET)


def one_stream(model, slow, contestant):
    """A row of the benchmark, without what the model itself is measured for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lifelong, "measure_preconditions", lambda *arguments, **more: MET)
        config = dataclasses.replace(SIZES, streams=1)
        (row,) = lifelong.benchmark(model, [slow], {contestant.name: contestant}, config=config, new_ids=None).rows
    return row


@pytest.fixture(scope="module")
def dense(shallow):
    return one_stream(*shallow, dataclasses.replace(CONTESTANTS["dense"], rates=RATES))


@pytest.mark.parametrize("name", OWN)
def test_the_rate_of_your_own_function_is_chosen_and_means_what_it_says(shallow, dense, name):
    """From the same grid as dense, on the same validation stream: what is dense in other words has the rate and the scores of dense."""
    function, factor = OWN[name]
    mine = one_stream(*shallow, own_function("mine", function, tuple(factor * rate for rate in RATES)))
    assert mine.rate == pytest.approx(factor * dense.rate)
    for score in ("recall", "in_episode", "harm"):
        np.testing.assert_array_equal(mine.scores[score], dense.scores[score])


def test_your_own_function_as_it_stands(shallow, monkeypatch):
    names = measured(monkeypatch)
    row = one_stream(*shallow, own_function("mine", consolidation.dense(0.25), rates=()))
    assert (row.rate, names) == (None, ["mine"])


@pytest.mark.usefixtures("_met")
def test_a_function_that_breaks_the_weights_is_no_row(shallow):
    model, slow = shallow

    def broken(slow, fast, activity):
        return {**slow, "synapse": slow["synapse"] * jnp.nan}

    config = dataclasses.replace(SIZES, streams=1)
    with jax.debug_nans(False), pytest.raises(consolidation.ConsolidationError, match="broken made slow weights NaN"):
        lifelong.run(model, slow, broken, name="broken", config=config, new_ids=None)


def test_all_tables_are_printed_whole_on_a_narrow_terminal(result, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    result.print()
    printed = capsys.readouterr().out
    for expected in ("bits per", " ms", "cosine 1", "by episodes since"):
        assert expected in printed
    assert "…" not in printed.replace("0 … ", "")


ROWS = ("none", "dense", "dense_shuffled")


def rows_of(names):
    return {name: CONTESTANTS[name] for name in names}


def measured(monkeypatch):
    """The contestants that the benchmark measures from here on, a name for each time."""
    names, row = [], lifelong._Arena.row

    def counted(arena, *arguments):
        names.append(arena._contestant.name)
        return row(arena, *arguments)

    monkeypatch.setattr(lifelong._Arena, "row", counted)
    return names


@pytest.mark.usefixtures("_met")
def test_rows_that_are_done_are_not_measured_again(shallow, tmp_path, monkeypatch):
    model, slow = shallow
    path, settings = tmp_path / "new" / "unfinished.json", finished_rows.settings_of([slow])
    own = {"own": own_function("own", consolidation.none(), rates=())}
    names = measured(monkeypatch)

    short = dataclasses.replace(SIZES, streams=1)

    def benchmark(contestants, config=short, new_ids=0, **rates):
        names.clear()
        finished = finished_rows.FinishedRows(path, settings)
        return lifelong.benchmark(model, [slow], contestants, config=config, rates=rates, new_ids=new_ids, finished=finished)

    first = benchmark(rows_of(["none", "nearest_neighbour"]) | own | rows_of(ROWS[1:]), dense=0.25)
    assert names == ["none", "nearest_neighbour", "own", "dense", "dense_shuffled"]
    again = benchmark(own | rows_of(ROWS) | rows_of(["nearest_neighbour"]), dense=0.25)
    assert names == ["own"]  # whose code may be another one by now
    before = {row.name: row for row in first.rows}
    for row in again.rows[1:]:
        assert json.dumps(row.to_dict()) == json.dumps(before[row.name].to_dict())
    benchmark(rows_of(ROWS), dense=0.5)
    assert names == ["dense", "dense_shuffled"]
    benchmark(rows_of(["none"]), config=dataclasses.replace(short, seed=7))
    assert names == ["none"]
    benchmark(rows_of(["none"]), new_ids=1)
    assert names == ["none"]
    assert len(finished_rows.FinishedRows(path, settings)) == 8


@pytest.mark.usefixtures("_met")
def test_a_rate_that_was_chosen_is_not_chosen_again(shallow, tmp_path, monkeypatch):
    model, slow = shallow
    path, settings = tmp_path / "unfinished.json", finished_rows.settings_of([slow])
    few = {"dense": dataclasses.replace(CONTESTANTS["dense"], rates=(0.1, 1.0))}
    names = measured(monkeypatch)
    for more, expected in (({}, ["dense"] * 3), (rows_of(["dense_shuffled"]), ["dense_shuffled"])):
        names.clear()
        finished = finished_rows.FinishedRows(path, settings)
        result = lifelong.benchmark(model, [slow], few | more, config=SIZES, finished=finished)
        assert names == expected
        assert len({row.rate for row in result.rows}) == 1


@pytest.fixture
def one_row():
    return lifelong.Row("none", None, {"recall": np.array([[0.5, np.nan]])}, {}, np.zeros((2, 1)))


NONE = CONTESTANTS["none"]


def test_rows_of_another_run_are_refused(shallow, tmp_path, one_row):
    _, slow = shallow
    path, settings = tmp_path / "unfinished.json", finished_rows.settings_of([slow])
    finished_rows.FinishedRows(path, settings).add(one_row, NONE, SIZES, None)
    other = finished_rows.settings_of([{**slow, "decoder": slow["decoder"] + 1}])
    with pytest.raises(ConfigError, match=r"interrupted run \(1\), which differs from this one in weights: finish"):
        finished_rows.FinishedRows(path, other)
    assert len(finished_rows.FinishedRows(path, settings, overwrite=True)) == 1
    assert len(finished_rows.FinishedRows(path, other, overwrite=True)) == 0
    path.write_text("[")
    with pytest.raises(ConfigError, match="should hold rows of an interrupted run and cannot be read .*: move or delete"):
        finished_rows.FinishedRows(path, settings)
    assert len(finished_rows.FinishedRows(path, settings, overwrite=True)) == 0
    assert path.read_text() == "["


def test_rows_that_no_result_holds_stay(tmp_path, one_row):
    path, longer = tmp_path / "unfinished.json", dataclasses.replace(SIZES, streams=3)
    finished_rows.FinishedRows(path, {}).add(one_row, NONE, SIZES, None)
    other = finished_rows.FinishedRows(path, {})
    other.add(one_row, NONE, longer, None)
    assert other.get(NONE, dataclasses.replace(SIZES, known=0), None) is None
    assert other.finish() == 1
    left = finished_rows.FinishedRows(path, {})
    assert left.get(NONE, longer, None) is None
    assert left.get(NONE, SIZES, None).to_dict() == one_row.to_dict()
    assert left.finish() == 0
    assert not path.exists()


def test_measuring_goes_on_when_rows_cannot_be_kept(tmp_path, one_row, caplog, monkeypatch):
    def full(path, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logging.getLogger("bdh_jax"), "propagate", True)
    monkeypatch.setattr("pathlib.Path.replace", full)
    finished = finished_rows.FinishedRows(tmp_path / "unfinished.json", {})
    finished.add(one_row, NONE, SIZES, None)
    assert "unfinished.json cannot be written (No space left on device)" in caplog.text
    assert len(finished) == 1
    assert not list(tmp_path.iterdir())


def test_rates_are_chosen_by_recall_minus_harm():
    """Of an arena that was told what each rate gives."""
    gives = {0.1: (0.3, -0.1), 0.2: (0.6, 0.1), 0.4: (0.9, 0.5), 0.8: (0.35, np.nan)}

    class Arena:
        def row(self, slows, unharmed, rate, streams):
            assert streams == "validation"
            recall, harm = (np.full((1, 1), value) for value in gives[rate])
            return lifelong.Row("x", rate, {"recall": recall, "harm": harm}, {}, np.zeros((1, 1)))

    contestant = Contestant("x", None, rates=tuple(gives))
    with lifelong.Progress("lifelong", 4) as progress:
        assert lifelong._tune(Arena(), contestant, [], [], "validation", progress) == 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fast": FastWeightConfig(enabled=False)}, "fast.enabled=False"),
        ({"fast": FastWeightConfig()}, "fast.synapse=False"),
        ({"fast": FastWeightConfig(synapse=True, address="current")}, "fast.address='current'"),
        ({"fast": FastWeightConfig(synapse=True, learn_decay=True)}, "fast.learn_decay=True: the lifelong benchmark gives"),
        ({"fast": FastWeightConfig(synapse=True, learn_learning_rate=True)}, "fast.learn_learning_rate=True"),
        ({"vocab_size": 130}, 'vocab_size=130: the task "facts" has 385 token ids'),
    ],
)
def test_models_it_cannot_use_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        lifelong.check_model(dataclasses.replace(CONFIG, **change))


def test_functions_it_cannot_use_are_refused(model, slow):
    with pytest.raises(ConfigError, match="returned no slow"):
        lifelong.run(model, slow, lambda slow, fast, activity: {}, config=SIZES)


def test_a_row_that_takes_another_ones_rate_needs_it(model, slow):
    with pytest.raises(ConfigError, match="'dense_shuffled' takes the rate of 'dense'"):
        lifelong.benchmark(model, [slow], {"x": CONTESTANTS["dense_shuffled"]}, config=SIZES)


def test_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = interval(values.reshape(4, 100))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert np.isnan(interval(np.array([1.0, np.nan]))).all()
    assert np.isnan(interval(np.array([1.0]))).all()  # one number says nothing of how much others would differ


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_can_be_traced_for_an_episode(model, slow, stream, name):
    """With its rate traced where it says so, as the benchmark does."""
    contestant = CONTESTANTS[name]
    facts = facts_of(stream, 0)
    rate = contestant.rates[0] if contestant.rates else 0.1

    def episode(slow, rate):
        learner = contestant.build(model, rate, 32)
        slow = learner.prepare(slow)
        history = learner.init(slow)
        tokens = facts.reshape(1, -1)
        output = learner.model.apply({"params": slow}, tokens, learner.start(history), collect=learner.collect)
        slow, history = learner.update(slow, history, output, facts)
        return slow, learner.answer(slow, history, facts[:, :2])

    if contestant.traced:
        after, answer = jax.eval_shape(episode, slow, rate)
    else:
        after, answer = jax.eval_shape(lambda slow: episode(slow, rate), slow)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, slow)
    assert answer.shape == (len(facts),)


def test_least_squares_recalls_an_episode_that_it_has_seen(model, slow, stream):
    """One episode without another that could disturb it: all that the addresses let it know."""
    learner = CONTESTANTS["least_squares"].build(model, 1.0, 32)
    facts = facts_of(stream, 0)
    output = apply(learner.model, slow, facts.reshape(1, -1))
    after, history = learner.update(slow, learner.init(slow), output, facts)
    gram, state = (np.asarray(a[:, 0], np.float64) for a in (output.fast.gram, output.fast.memory))
    solved = np.stack(
        [
            np.linalg.solve(g + LEAST_SQUARES_RIDGE * np.eye(128), s.reshape(128, -1))
            for g, s in zip(gram, state, strict=True)
        ]
    )
    np.testing.assert_allclose(after["synapse"].reshape(solved.shape), solved, atol=1e-3 * np.abs(solved).max())
    np.testing.assert_allclose(history["background"], gram, rtol=1e-6)


def test_mesa_keeps_nothing_but_the_synapse(model, slow):
    learner = CONTESTANTS["mesa"].build(model, 0.1, 32)
    assert jax.tree.leaves(learner.init(slow)) == []
    assert learner.nbytes(slow, learner.init(slow)) == slow["synapse"].nbytes
