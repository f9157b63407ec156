"""TensorBoard events, and what a full disk does to a run."""

from __future__ import annotations

import struct

import jax
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from bdh_jax.experiment import setup_of
from bdh_jax.runs.events import EventFile
from bdh_jax.runs.folder import CheckpointError
from bdh_jax.training import loop


@pytest.fixture(scope="module", autouse=True)
def donation():
    with jax.debug_nans(False):
        yield


def _read(folder):
    """Events of each file: length, checksum, event, checksum."""
    files = []
    for path in sorted(folder.iterdir()):
        content, events = path.read_bytes(), []
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
        files.append(events)
    return files


def test_what_is_written_can_be_read(tmp_path):
    events = EventFile(tmp_path / "new", start=3)
    events.scalar("train/loss", 0.5, 3)
    events.flush()
    version, start, number = _read(tmp_path / "new")[0]
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, SessionLog.START)
    assert (number.step, number.summary.value[0].tag, number.summary.value[0].simple_value) == (3, "train/loss", 0.5)
    events.close()


def test_a_start_in_the_same_second_leaves_the_older_file(tmp_path):
    for start in (1, 5):
        events = EventFile(tmp_path, start=start)
        events.scalar("train/loss", 0.5, start)
        events.close()
    assert [[event.step for event in events] for events in _read(tmp_path)] == [[0, 1, 1], [0, 5, 5]]


def test_a_full_disk_ends_a_run_that_then_goes_on(tiny, successor, tmp_path, monkeypatch):
    """With the checkpoints it had, and without a thread that nobody hears of."""
    config, whole, workdir = tiny(), tmp_path / "whole", tmp_path / "run"
    real, steps = EventFile.scalar, []

    def full(self, name, value, step):
        steps.append(step)
        if step >= 5:
            raise OSError(28, "No space left on device")
        real(self, name, value, step)

    expected = loop.train(setup_of(config), successor(config), whole)
    monkeypatch.setattr(EventFile, "scalar", full)
    with pytest.raises(
        CheckpointError, match=r"metrics in .*run cannot be written: No space left on device.*goes on from the"
    ):
        loop.train(setup_of(config), successor(config), workdir)
    assert max(steps) == 5
    monkeypatch.undo()
    assert loop.train(setup_of(config), successor(config), workdir)["evaluation"] == expected["evaluation"]


def test_a_checkpoint_that_cannot_be_written_is_one_message(tiny, successor, tmp_path, monkeypatch):
    def full(self, *arguments, **more):
        raise ValueError("RESOURCE_EXHAUSTED: write failed\nmore")

    config = tiny()
    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", full)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be written into .*RESOURCE_EXHAUSTED: write failed\)"):
        loop.train(setup_of(config), successor(config), tmp_path)
