"""``bdh plan``: what fits, what does not and what to change then, in a process of its own and in this one."""

from __future__ import annotations

import json

import pytest

from bdh_jax import ConfigError
from bdh_jax.commands._plans import compile_step, describe_mesh, describe_save, plan, remedies, search, with_mesh
from bdh_jax.config.convert import change
from bdh_jax.experiment import load_experiment
from bdh_jax.models.gpt import GPTConfig
from bdh_jax.parallel.chips import CHIPS, environment, missing, read_topology
from tests.processes import run_text


def planned(*arguments: str):
    """Status, output and errors of the command."""
    return run_text("bdh_jax", "plan", *arguments)


@pytest.mark.slow
def test_a_plan_that_fits_and_one_that_does_not():
    status, output, errors = planned("text:official", "--topology=v5e:2x2", "--nocompile")
    assert (status, errors) == (0, "")
    assert "v5e:2x2, data:4, 32 × 512 tokens a step, recomputing" in output
    assert "GB of 16.91 GB on a chip, by declarations" in output
    # Weights and two moments, float32, once: all four chips hold the same, in one machine.
    assert "a save: 0.304 GB from a machine, 0.6 s at --storage=0.5 GB a second, within a notice of 30 s" in " ".join(
        output.split()
    )
    status, output, errors = planned("text:official", "--topology=v5e:2x2", "--batch=512", "--nocompile")
    assert (status, errors) == (1, "")
    assert "does not fit" in output
    assert "fits with --config." in output


@pytest.mark.slow
def test_a_program_reads_it_as_json_and_a_mistake_is_one_line():
    status, output, _ = planned("text:official", "--topology=v5p:2x2x2", "--mesh=heads:4,fsdp", "--nocompile", "--json")
    found = json.loads(output)
    assert status == 0
    assert (found["mesh"], found["fsdp"], found["chips"]) == ({"data": 2, "heads": 4}, True, 8)
    # Encoders and decoder lie on all eight; embedding and readout have no heads.
    assert found["declared"]["parameters"] == 4 * (3 * 256 * 32_768 // 8 + 2 * 256 * 256 // 2)
    assert found["saved"] == 4 * (found["declared"]["parameters"] + found["declared"]["optimizer"])
    assert found["save_seconds"] == pytest.approx(found["saved"] / 0.5e9)
    status, _, errors = planned("text:official", "--topology=v5p:2x2", "--nocompile")
    assert (status, errors.count("\n")) == (2, 1)
    assert "chips of v5p are connected in 3 dimensions, such as v5p:4x4x4" in errors


@pytest.mark.slow
@pytest.mark.skipif(not missing("tpu"), reason="this environment has libtpu")
def test_without_the_chips_compiler_cpu_devices_are_compiled_for_and_named():
    status, output, errors = planned("text:smoke", "--topology=v5e:2x2", "--mesh=data:2,heads:2")
    assert (status, errors) == (0, "")
    said = " ".join(output.split())
    assert "compiled for cpu:4, since the compiler of v5e is not installed here" in said
    assert "by declarations" in said
    assert "all-reduce heads" in said
    topology = read_topology("v5e:16x16")
    large = plan(with_mesh(change(load_experiment("text:smoke"), "train", batch_size=128), topology, "heads:2"), topology)
    with pytest.raises(ConfigError, match="libtpu is not installed, and 256 CPU devices"):
        compile_step(large)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v7:2x2", "names the chip 'v7'; known are v5e, v5p, v6e, h100, cpu"),
        ("v5e", "must be a chip and a shape"),
        ("v5e:2x0", "must be a chip and a shape"),
        ("h100:2x4", "connected in 1 dimensions, such as h100:4"),
    ],
)
def test_a_topology_that_there_is_not(text, message):
    with pytest.raises(ConfigError, match=message):
        read_topology(text)


def test_a_topology_sets_what_its_compiler_reads():
    assert read_topology("V5P:8x8x8").size == 512
    assert environment(read_topology("cpu:8"))["XLA_FLAGS"] == "--xla_force_host_platform_device_count=8"
    assert "TPU_SKIP_MDS_QUERY" in environment(read_topology("v5e:2x2"))
    assert all(chip.memory > 0 and chip.flops > 1e14 for chip in CHIPS.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:2,heads:1", "--mesh of data 2 has 2 devices, and --topology=v5e:2x2 4 chips"),
        ("rows:4", "'rows:4' is none of data, sequence, heads, neurons"),
        ("heads:two", "'heads:two' is none of"),
        ("heads:3", "--mesh of heads 3 has 3 devices|mesh.heads=3 does not divide"),
    ],
)
def test_a_mesh_that_does_not_fit_the_chips(text, message):
    with pytest.raises(ConfigError, match=message):
        with_mesh(load_experiment("text:official"), read_topology("v5e:2x2"), text)


def test_a_save_counts_what_one_machine_writes_and_says_what_a_longer_one_than_the_notice_costs():
    config, topology = change(load_experiment("scale:10b"), "train", batch_size=512), read_topology("v5p:8x8x8")
    whole, split = (plan(with_mesh(config, topology, f"data:32,heads:16{more}"), topology) for more in ("", ",fsdp"))
    assert whole.saved == 4 * (whole.needs.parameters + whole.needs.optimizer)
    assert split.saved == 4 * (split.needs.parameters + split.needs.optimizer) < whole.saved / 16
    # Every chip of a machine holds the same, and one saves it.
    equal = plan(with_mesh(config, topology, "data:512"), topology)
    assert equal.saved == equal.needs.parameters + equal.needs.optimizer
    assert describe_save(split, 0.5).endswith("within a notice of 30 s")
    text = describe_save(whole, 0.5)
    assert "longer than a notice of 30 s, which fsdp in the mesh shortens" in text
    assert f"costs up to train.checkpoint_every={config.train.checkpoint_every} steps (" in text
    assert describe_save(whole, 5.0).endswith("within a notice of 30 s")


def test_chips_that_a_mesh_leaves_go_to_data():
    config, topology = load_experiment("text:official"), read_topology("v5e:4x4")
    assert describe_mesh(with_mesh(config, topology, "heads:4,fsdp").mesh) == "data:4,heads:4,fsdp"
    assert describe_mesh(with_mesh(config, topology, None).mesh) == "data:16"


def test_what_to_change_fits_by_declarations():
    topology = read_topology("v5e:2x2")
    config = with_mesh(change(load_experiment("text:official"), "train", batch_size=512), topology, None)
    too_large = plan(config, topology)
    assert too_large.fits is False
    found = remedies(too_large)
    assert 1 <= len(found) <= 3
    for flags, other in found:
        assert other.fits
        assert flags.startswith("--config.")
        assert other.config.mesh.data * other.config.mesh.heads == 4
    # A compiler that says it takes twice as much as declared makes the remedy larger.
    answer = {"arguments": 0, "outputs": 0, "in_place": 0, "temporaries": 2 * too_large.needs.total, "topology": "v5e:2x2"}
    stricter = remedies(plan(config, topology, answer))
    assert stricter[0][1].takes < found[0][1].takes


def test_what_a_compiler_refuses_does_not_fit():
    topology = read_topology("v5e:2x2")
    config = with_mesh(load_experiment("text:official"), topology, None)
    assert plan(config, topology).fits
    assert plan(config, topology, {"refused": "RESOURCE_EXHAUSTED", "topology": "v5e:2x2", "versions": {}}).fits is False


def test_a_search_ranks_what_fits():
    topology = read_topology("v5e:2x2")
    found = search(change(load_experiment("text:official"), "model", n_layer=2), topology, batches=(64,))
    assert len(found) > 10
    assert all(one.fits for one in found)
    chip = CHIPS["v5e"]
    times = [one.measured_cost.step(chip) / one.tokens for one in found if one.measured_cost is not None]
    assert times == sorted(times)
    assert len({describe_mesh(one.config.mesh) for one in found}) > 3
    assert {one.config.model.remat for one in found} == {False, True}
    gpt = change(load_experiment("text:official"), model=GPTConfig())
    with pytest.raises(ConfigError, match="--search needs declared activations, and a 'gpt' model in this form has none"):
        search(gpt, topology, batches=(64,))
    with pytest.raises(ConfigError, match="nothing is known of the rates of a CPU"):
        search(gpt, read_topology("cpu:4"))


def test_longer_windows_and_more_heads_cost_what_they_should():
    """Twice the batch is twice the work and nearly twice the activations; whole heads on two chips halve both, and send sums."""
    topology = read_topology("v5p:2x1x1")
    config = change(load_experiment("text:official"), "model", dropout=0.0)
    one, twice = (
        plan(with_mesh(change(config, "train", batch_size=rows), topology, "data:2"), topology) for rows in (32, 64)
    )
    heads = plan(with_mesh(change(config, "train", batch_size=32), topology, "heads:2"), topology)
    assert one.cost is not None
    assert twice.cost is not None
    assert heads.cost is not None
    assert twice.cost.flops == 2 * one.cost.flops
    assert 1.9 < twice.needs.activations / one.needs.activations < 2
    assert heads.cost.flops == one.cost.flops
    assert heads.needs.parameters < 0.51 * one.needs.parameters
    assert {axes for _, axes in heads.sent} == {("heads",)}
    # y and the gradient of the layer's input, of which forward is done twice.
    assert heads.sent["all-reduce", ("heads",)] == 6 * 3 * 32 * 512 * 256 * 4
