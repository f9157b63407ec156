"""A sweep: what it trains, what it chooses, how it goes on, and what it refuses. Most of it without training anything."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal

import jax
import pytest

from bdh_jax import sweep
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.experiment import load_experiment, record_of
from bdh_jax.experiment import run as run_experiment
from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.runs.folder import RESULTS, CheckpointError, write_json
from bdh_jax.runs.reporter import read_rows
from bdh_jax.tasks.scores import Score
from bdh_jax.training.loop import Interrupted, NonFiniteError

RATE, RULE, PAIRS = "optimizer.learning_rate", "model.fast.rule", "task.train_pairs"
ROWS = {RULE: ("hebbian", "delta")}
GRID = {RATE: (1e-3, 2e-3, 4e-3)}


@pytest.fixture(scope="module")
def smoke():
    return load_experiment("nback:smoke")


class Training:
    """In the place of the training: a run's score is a function of its configuration, and nothing is computed."""

    def __init__(self):
        self.done = []
        """(rule, rate, seed) of each run."""
        self.late = None
        self.stop_after = None

    def score(self, rule, rate, seed):
        """The best rate is 2e-3 with hebbian, 4e-3 with delta, each seed a little better than the one before."""
        return 0.9 - 100 * abs(rate - {"hebbian": 2e-3, "delta": 4e-3}[rule]) + 1e-3 * (seed % 100)

    def __call__(self, config, workdir):
        if config.seeds:
            write_json(workdir / RESULTS, {"config": record_of(config).config, "seeds": list(config.seeds)})
            return {}, None
        rule, rate, seed = config.model.fast.rule, config.optimizer.learning_rate, config.seed
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt
        self.done.append((rule, rate, seed))
        score = self.score(rule, rate, seed)
        if score is None:
            raise NonFiniteError("loss nan is not finite at step 7", 7)
        evaluation = {name: Score(name, 8, score, score, 1.0).to_dict() for name in ("n2", "n8")}
        results = {
            "config": record_of(config).config,
            "seed": seed,
            "steps": 20,
            "seconds": 1.0,
            "primary": score,
            "evaluation": evaluation,
            "note": "",
            "best": {"step": 20, "primary": score},
        }
        write_json(workdir / RESULTS, results)
        return results, self.late


@pytest.fixture
def training(monkeypatch):
    training = Training()
    monkeypatch.setattr(sweep, "train", training)
    return training


def cells(table):
    """Header → the cells of its column."""
    return {str(column.header): list(column.cells) for column in table.columns}


# What is chosen.


def test_each_row_is_reported_at_its_best_point_with_other_seeds(smoke, training, tmp_path):
    planned = sweep.plan(smoke, rows=ROWS, grid=GRID, seeds=(0, 1))
    assert planned.describe() == "2 rows × 3 grid points, then 2 rows × 2 seeds = 10 runs"
    result = sweep.run(planned, tmp_path)
    assert [(rule, seed) for rule, _, seed in training.done[:3]] == [("hebbian", 100)] * 3
    assert [run for run in training.done if run[2] != 100] == [
        ("hebbian", 2e-3, 0),
        ("hebbian", 2e-3, 1),
        ("delta", 4e-3, 0),
        ("delta", 4e-3, 1),
    ]
    assert len(training.done) == planned.count
    shown = cells(result.table())
    assert shown["row"] == ["rule=hebbian", "rule=delta"]
    assert shown["learning_rate"] == ["0.002", "0.004"]
    assert shown["n2"] == ["0.9005 ± 0.0007"] * 2
    assert cells(result.validation_table())["0.002"] == ["0.9000 *", "0.7000"]
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [row["chosen"] for row in stored["results"]] == [{RATE: 2e-3}, {RATE: 4e-3}]
    seeds = tmp_path / "rule=delta" / "seeds-learning_rate=0.004"
    assert sorted(path.name for path in seeds.iterdir()) == ["results.json", "seed0", "seed1"]
    assert (tmp_path / "rule=delta" / "learning_rate=0.001" / "results.json").exists()
    assert "| rule=delta | 0.004 | 2 | 0.9005 ± 0.0007 | 0.9005 ± 0.0007 |" in result.markdown()


def test_the_first_of_equal_points_is_chosen(smoke, training, tmp_path):
    training.score = lambda rule, rate, seed: 0.5
    result = sweep.run(sweep.plan(smoke, grid={RATE: (4e-3, 1e-3, 2e-3)}), tmp_path)
    assert [row.chosen.values for row in result.rows] == [{RATE: 4e-3}]


def test_an_edge_of_the_grid_is_said_and_a_name_has_none(smoke, training, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "bdh_jax"):
        result = sweep.run(sweep.plan(smoke, rows=ROWS, grid=GRID, seeds=(0,)), tmp_path / "numbers")
    note = "rule=delta: optimizer.learning_rate=0.004 is the largest of its grid; try larger ones as well"
    assert [record.getMessage() for record in caplog.records] == [note]
    assert result.table().caption == note
    training.score = lambda rule, rate, seed: rate
    result = sweep.run(sweep.plan(smoke, grid={RULE: ("hebbian", "delta")}, seeds=(0,)), tmp_path / "names")
    assert result.rows[0].notes() == []
    training.score = lambda rule, rate, seed: -rate
    result = sweep.run(sweep.plan(smoke, grid=GRID, seeds=(0,)), tmp_path / "small")
    assert result.rows[0].edges() == {RATE: "smallest"}


def test_without_a_grid_nothing_is_chosen(smoke, training, tmp_path):
    planned = sweep.plan(smoke, rows=ROWS, seeds=(5,))
    result = sweep.run(planned, tmp_path)
    assert [seed for _, _, seed in training.done] == [5, 5]
    assert planned.describe() == "2 rows × 1 seed = 2 runs"
    assert len(result.tables()) == 1
    assert (tmp_path / "rule=delta" / "seeds" / "seed5" / "results.json").exists()
    assert result.plot().axes[0].get_title(loc="left")


def test_rows_are_variants_and_values_in_all_combinations(smoke):
    experiments = {"": smoke, "stop_gradient": change(smoke, "model.fast", write_gradient="stop")}
    planned = sweep.plan(experiments, rows={**ROWS, "model.fast.decay": (0.9, 1)}, grid={RATE: (1e-3,)})
    assert [row.name for row in planned.rows][:3] == [
        "rule=hebbian,decay=0.9",
        "rule=hebbian,decay=1.0",
        "rule=delta,decay=0.9",
    ]
    assert len(planned.rows) == 8
    assert planned.rows[4].name == "stop_gradient,rule=hebbian,decay=0.9"
    assert planned.rows[-1].points[0].config.model.fast == dataclasses.replace(
        smoke.model.fast, rule="delta", decay=1.0, write_gradient="stop"
    )
    assert planned.seeds == (0, 1, 2)
    assert sweep.plan(dataclasses.replace(smoke, seeds=(4, 5))).seeds == (4, 5)


def test_options_beside_the_one_that_is_swept_stay(smoke):
    function = change(smoke, "model.fast", synapse=True)
    function = change(function, "consolidation", function="row_topk", options={"fraction": 0.5, "rate": 0.1})
    planned = sweep.plan(function, grid={"consolidation.options.rate": (0.2, 0.4)})
    assert [point.config.consolidation.options for point in planned.rows[0].points] == [
        {"fraction": 0.5, "rate": 0.2},
        {"fraction": 0.5, "rate": 0.4},
    ]
    assert planned.rows[0].points[1].name == "rate=0.4"


def test_names_of_folders_are_short_and_tell_keys_apart(smoke):
    assert sweep.short_names(("model.fast.learning_rate", RATE, PAIRS)) == {
        "model.fast.learning_rate": "fast.learning_rate",
        RATE: "optimizer.learning_rate",
        PAIRS: "train_pairs",
    }
    planned = sweep.plan(smoke, grid={PAIRS: ((4, 8), (16,)), "optimizer.clip_norm": (None, 1.0)})
    assert [point.name for point in planned.rows[0].points] == [
        "train_pairs=4-8,clip_norm=None",
        "train_pairs=4-8,clip_norm=1.0",
        "train_pairs=16,clip_norm=None",
        "train_pairs=16,clip_norm=1.0",
    ]
    (row,) = sweep.plan({"../" + "x" * 300: smoke}).rows
    assert len(row.name) == sweep.MOST
    assert set(row.name) <= set("x-0123456789abcdef")


# Going on.


def test_after_an_interruption_only_what_is_missing_is_trained(smoke, training, tmp_path, caplog):
    planned = sweep.plan(smoke, rows=ROWS, grid=GRID, seeds=(0, 1))
    training.stop_after = 7
    with pytest.raises(KeyboardInterrupt):
        sweep.run(planned, tmp_path)
    training.stop_after, first = None, training.done
    training.done = []
    with caplog.at_level(logging.INFO, "bdh_jax"):
        result = sweep.run(planned, tmp_path)
    assert len(training.done) == 3
    assert set(first) | set(training.done) == {(*r[:2], r[2]) for r in first} | set(training.done)
    assert len(first + training.done) == len(set(first + training.done)) == planned.count
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == [
        f"{planned.describe()}; finished already: 7",
        "run 8 of 10: rule=delta, learning_rate=0.004, seed 100",
    ]
    training.done = []
    again = sweep.run(planned, tmp_path)
    assert training.done == []
    assert again.to_dict() == result.to_dict()


def test_rows_values_and_seeds_may_be_added(smoke, training, tmp_path):
    sweep.run(sweep.plan(smoke, rows={RULE: ("delta",)}, grid={RATE: (1e-3, 2e-3)}, seeds=(0,)), tmp_path)
    training.done = []
    result = sweep.run(sweep.plan(smoke, rows=ROWS, grid=GRID, seeds=(0, 1)), tmp_path)
    assert [run for run in training.done if run[0] == "delta"] == [
        ("delta", 4e-3, 100),
        ("delta", 4e-3, 0),
        ("delta", 4e-3, 1),
    ]
    assert len(training.done) == 8
    assert result.rows[1].chosen.values == {RATE: 4e-3}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": {RULE: ("delta",)}}, "has more than this one: row rule=hebbian"),
        ({"grid": {RATE: (1e-3, 4e-3)}}, r"has more than this one: optimizer\.learning_rate=0\.002"),
        ({"seeds": (1,)}, "has more than this one: seed 0"),
        ({"validation_seed": 99}, "another sweep: validation_seed: there 100, now 99. Use another --workdir"),
        (
            {"grid": {"model.fast.decay": (0.9,)}},
            r"keys of the grid: there optimizer\.learning_rate, now model\.fast\.decay",
        ),
    ],
)
def test_another_sweep_is_refused(smoke, training, tmp_path, changed, message):
    settings = {"rows": ROWS, "grid": GRID, "seeds": (0, 1)}
    sweep.run(sweep.plan(smoke, **settings), tmp_path)
    before, training.done = (tmp_path / "sweep.json").read_bytes(), []
    with pytest.raises(CheckpointError, match=message):
        sweep.run(sweep.plan(smoke, **settings | changed), tmp_path)
    assert training.done == []
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_another_experiment_is_refused_and_what_only_says_how_is_not(smoke, training, tmp_path):
    sweep.run(sweep.plan(smoke, grid=GRID), tmp_path)
    with pytest.raises(CheckpointError, match=r"another sweep: model\.d_model: there 16, now 32\. Use another"):
        sweep.run(sweep.plan(change(smoke, "model", d_model=32), grid=GRID), tmp_path)
    training.done = []
    sweep.run(sweep.plan(change(smoke, "train", log_every=1), grid=GRID), tmp_path)
    assert training.done == []


def test_a_folder_of_something_else_is_left_alone(smoke, training, tmp_path):
    for name in ("run.json", "figure.png", "seed3"):
        folder = tmp_path / name
        (folder / name).mkdir(parents=True)
        with pytest.raises(CheckpointError, match=rf"holds {name} of something else, and no sweep\.json"):
            sweep.run(sweep.plan(smoke), folder)
        assert [path.name for path in folder.iterdir()] == [name]
    assert training.done == []


def test_what_cannot_begin_names_its_row_and_leaves_the_folder_to_another_sweep(smoke, training, tmp_path):
    planned = sweep.plan(change(smoke, "model", vocab_size=100), rows=ROWS, grid=GRID)

    def refuse(rule, rate, seed):
        raise ConfigError("model.vocab_size=100 is too small")

    score, training.score = training.score, refuse
    with pytest.raises(ConfigError, match="^rule=hebbian, learning_rate=0.001, seed 100: model.vocab_size=100 is too small"):
        sweep.run(planned, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    training.score = score
    assert sweep.run(sweep.plan(smoke, grid=GRID), tmp_path / "new").rows


def test_a_signal_that_comes_at_the_end_of_a_run_stops_the_sweep(smoke, training, tmp_path):
    training.late = signal.SIGTERM
    with pytest.raises(Interrupted, match="SIGTERM: 1 of 6 runs are finished; the same command goes on in") as stopped:
        sweep.run(sweep.plan(smoke, grid=GRID), tmp_path)
    assert stopped.value.signal_number == signal.SIGTERM
    assert len(training.done) == 1
    training.late = None
    sweep.run(sweep.plan(smoke, grid=GRID), tmp_path)
    assert len(training.done) == 6


# Divergence.


def test_a_point_that_diverges_is_a_result(smoke, training, tmp_path):
    better = training.score
    training.score = lambda rule, rate, seed: None if rate == 4e-3 else better(rule, rate, seed)
    planned = sweep.plan(smoke, rows=ROWS, grid=GRID, seeds=(0,))
    result = sweep.run(planned, tmp_path)
    assert result.rows[1].chosen.values == {RATE: 2e-3}
    assert cells(result.validation_table())["0.004"] == ["diverged at step 7"] * 2
    assert result.rows[1].validation[2].to_dict() == {"primary": None, "diverged_at": 7}
    training.done = []
    assert sweep.run(planned, tmp_path).to_dict() == result.to_dict()
    assert training.done == []
    assert result.plot().axes[0].get_lines()


def test_a_row_of_which_all_points_diverge_says_so(smoke, training, tmp_path):
    better = training.score
    training.score = lambda rule, rate, seed: None if rule == "delta" else better(rule, rate, seed)
    result = sweep.run(sweep.plan(smoke, rows=ROWS, grid=GRID, seeds=(0,)), tmp_path)
    assert cells(result.table())["learning_rate"] == ["0.002", "all diverged"]
    assert cells(result.table())["n2"][1] == "–"
    assert "rule=delta: every point of the grid diverged (at step 7, at step 7, at step 7)" in result.table().caption
    assert len(training.done) == 7
    training.score = lambda rule, rate, seed: None
    nothing = sweep.run(sweep.plan(smoke, grid=GRID, seeds=(0,)), tmp_path / "nothing")
    assert nothing.finding() == "Every row diverged"
    assert list(cells(nothing.table())) == ["row", "learning_rate", "seeds"]
    assert nothing.plot().axes


def test_a_seed_that_diverges_is_left_out_of_the_mean_and_named(smoke, training, tmp_path):
    training.score = lambda rule, rate, seed: None if seed == 1 else 0.5
    result = sweep.run(sweep.plan(smoke, grid={RULE: ("hebbian", "delta")}, seeds=(0, 1, 2)), tmp_path)
    shown = cells(result.table())
    assert (shown["seeds"], shown["n2"]) == (["2 of 3"], ["0.5000"])
    assert result.rows[0].notes() == ["default: seed 1 diverged at step 7"]
    summary = json.loads((tmp_path / "default" / "seeds-rule=hebbian" / "results.json").read_text())
    assert summary["seeds"] == [0, 2]


# Mistakes.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"grid": {"optimizer.learning_rat": (1,)}},
            r"learning_rat does not exist\. Did you mean config\.optimizer\.learning_rate",
        ),
        ({"grid": {RATE: ("fast",)}}, "row default, optimizer.learning_rate='fast': config.optimizer.learning_rate='fast'"),
        ({"grid": {RATE: (-1.0,)}}, "row default, optimizer.learning_rate=-1.0: config.optimizer: .* must be positive"),
        ({"grid": {RATE: ()}}, "learning_rate=.* must be a list of one value or more"),
        ({"grid": {RATE: (1e-3, 0.001)}}, "learning_rate=0.001 is in the grid twice"),
        ({"rows": {RULE: ("delta", "delta")}}, "the rows rule=delta and rule=delta are the same"),
        ({"rows": {RATE: (1e-3,)}, "grid": GRID}, "learning_rate is a key of the rows and of the grid"),
        ({"grid": {"seed": (1, 2)}}, "seed is no key to sweep over"),
        ({"seeds": (1, 100)}, "validation_seed=100 is among the seeds 1,100"),
        ({"seeds": (1, 1)}, "seeds=1,1 names a seed twice"),
        ({"seeds": (-1,)}, "seeds=-1 must lie in"),
        ({"rows": {"train.hooks": ((), ("nothing:here",))}}, r"row hooks=nothing-here: .*nothing"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(smoke, given, message):
    with pytest.raises(ConfigError, match=message):
        sweep.plan(smoke, **given)


def test_an_experiment_with_a_seed_of_its_own_is_refused(smoke):
    with pytest.raises(ConfigError, match="seed=3: a sweep names its seeds itself"):
        sweep.plan(dataclasses.replace(smoke, seed=3))
    with pytest.raises(ConfigError, match=r"seeds=1 of the sweep and config\.seeds=0,2 differ"):
        sweep.plan(dataclasses.replace(smoke, seeds=(0, 2)), seeds=(1,))


def test_names_that_a_folder_cannot_tell_apart_are_refused(smoke):
    with pytest.raises(ConfigError, match="the rows: two folders would be called 'a-b' and 'A-b'"):
        sweep.plan({"a/b": smoke, "A:b": change(smoke, "model", d_model=32)})


# The figure.


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1e-3, 2e-3, 4e-3), True),
        ((1, 3, 10), True),
        ((1, 2, 3), False),
        ((0, 1, 10), False),
        ((1, 2), True),
        ((2, 3), False),
    ],
)
def test_rates_that_are_multiplied_have_a_logarithmic_axis(values, expected):
    assert sweep._is_geometric(values) is expected


def test_the_figure_has_a_line_a_row_and_says_which_is_best(smoke, training, tmp_path):
    worse = training.score
    training.score = lambda rule, rate, seed: worse(rule, rate, seed) - 0.3 * (rule == "hebbian")
    result = sweep.run(sweep.plan(smoke, rows=ROWS, grid=GRID, seeds=(0, 1)), tmp_path)
    (axes,) = result.plot().axes
    assert axes.get_xscale() == "log"
    assert axes.get_title(loc="left") == "rule=delta is the best: 0.901 ± 0.001"
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["rule=hebbian", "rule=delta"]
    assert list(handles[1].get_ydata()) == pytest.approx([0.6, 0.7, 0.9])
    rings = [line for line in axes.get_lines() if line.get_markersize() == 11]
    assert [list(ring.get_xdata()) for ring in rings] == [[2e-3], [4e-3]]
    training.score = worse
    same = sweep.run(sweep.plan(smoke, rows=ROWS, grid=GRID, seeds=(0, 1)), tmp_path / "same")
    assert same.finding() == "rule=hebbian: 0.901 ± 0.001; rule=delta within the spread of seeds"


def test_rows_of_different_evaluation_sets_share_a_table(smoke, training, tmp_path):
    planned = sweep.plan({"": smoke, "other": change(smoke, "task", evaluation_sets=("n4",))}, seeds=(0,))
    result = sweep.run(planned, tmp_path)
    first, second = result.rows
    scores = {"n4": Score("n4", 8, 0.5, 0.5, 1.0).to_dict()}
    second.runs[0].results["evaluation"].clear()
    second.runs[0].results["evaluation"].update(scores)
    shown = cells(dataclasses.replace(result, rows=(first, second)).table())
    assert (shown["n2"], shown["n4"]) == (["0.7000", "–"], ["–", "0.5000"])
    alone = dataclasses.replace(result, rows=(second,)).table()
    assert list(cells(alone)) == ["row", "seeds", "accuracy", "credit", "ceiling", "credit ÷ ceiling"]
    assert alone.title == "n4: mean ± standard deviation over seeds 0"
    assert result.finding() == "default has the highest score: 0.700, without a spread"


# With training.


def test_runs_are_those_that_training_alone_makes(smoke, tmp_path):
    """Two rows, two points, of which the second diverges, two seeds."""
    model = BDHConfig(
        vocab_size=smoke.model.vocab_size,
        n_layer=1,
        d_model=8,
        n_head=1,
        n_neurons=16,
        dropout=0.0,
        fast=FastWeightConfig(learning_rate=0.5),
    )
    tiny = dataclasses.replace(smoke, model=model)
    tiny = change(tiny, "task", evaluation_sets=("n2",), train_pairs=(4,))
    tiny = change(tiny, "train", steps=3, evaluate_every=3, checkpoint_every=3, log_every=1)
    tiny = change(tiny, "optimizer", warmup_steps=0)
    planned = sweep.plan(tiny, rows={"model.fast.decay": (0.9, 0.5)}, grid={RATE: (1e-2, 1e38)}, seeds=(0, 1))
    with jax.debug_nans(False):
        result = sweep.run(planned, tmp_path / "sweep")
        alone = change(change(tiny, "model.fast", decay=0.5), "optimizer", learning_rate=1e-2)
        results = run_experiment(dataclasses.replace(alone, seed=1), tmp_path / "alone")
    for row in result.rows:
        assert row.chosen.values == {RATE: 1e-2}
        assert [outcome.diverged_at is None for outcome in row.validation] == [True, False]
        assert len(row.finite) == 2
    folder = tmp_path / "sweep" / "decay=0.5" / "seeds-learning_rate=0.01"
    assert result.rows[1].runs[1].results["evaluation"] == results["evaluation"]
    logged = [read_rows(place / "metrics.jsonl", until=3) for place in (folder / "seed1", tmp_path / "alone")]
    assert [[(row["step"], row.get("loss")) for row in rows] for rows in logged[:1]] == [
        [(row["step"], row.get("loss")) for row in rows] for rows in logged[1:]
    ]
    summary = json.loads((folder / "results.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert summary["mean"] == result.to_dict()["results"][1]["mean"]
