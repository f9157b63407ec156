"""What is said when processes cannot join, before anything is tried."""

from __future__ import annotations

import jax
import pytest

from bdh_jax.config import ConfigError
from bdh_jax.parallel import processes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host:1234", 2, None), "--process_id missing"),
        ((None, 2, None), "--coordinator and --process_id missing"),
        (("host", 2, 0), "--coordinator=host must be HOST:PORT"),
        (("host:port", 2, 0), "--coordinator=host:port must be HOST:PORT"),
        (("host:1234", 0, 0), "--num_processes=0 must be at least 1"),
        (("host:1234", 2, 2), "--process_id=2 must lie in 0 … 1"),
        (("[::1]:1234", 2, -1), "--process_id=-1 must lie in 0 … 1"),
    ],
)
def test_processes_that_cannot_join_say_why(given, said, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **how: pytest.fail("they were joined"))
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        processes.join(*given)


def test_where_there_is_no_cluster_the_flags_are_named(monkeypatch):
    def initialize(*arguments, **how):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError, match="no cluster that JAX knows.*--coordinator, --num_processes, --process_id"):
        processes.join()


def test_one_process_is_not_watched():
    with processes.watched(lambda who: pytest.fail(who)):
        pass
