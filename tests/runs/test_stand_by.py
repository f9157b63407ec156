"""A process that stands by for another one tells how that ended, also if it was aborted while it left."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os
from bdh_jax.runs import signals
ended = signals.stand_by()
if ended is None:
    {child}
print(ended)
"""


@pytest.mark.parametrize(
    ("child", "told"),
    [
        ("os._exit(3)", 3),
        ("os.abort()", -6),
        ("signals.say_status(0); os.abort()", 0),
        ("signals.say_status(0); os.kill(os.getpid(), 9)", -9),
    ],
)
def test_an_abort_counts_only_before_the_status_was_said(child, told):
    found = subprocess.run([sys.executable, "-c", PROGRAM.format(child=child)], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == str(told), found.stderr
