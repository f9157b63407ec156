"""Freed memory is kept: counted in page faults, not in seconds."""

import platform
import subprocess
import sys

PROGRAM = """
import resource, sys
from bdh_jax.allocator import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "keep" else False
def step():
    for _ in range(4):
        b"x" * (64 << 20)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(int(taken), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(side):
    output = subprocess.run([sys.executable, "-c", PROGRAM, side], check=True, capture_output=True, text=True).stdout
    taken, count = map(int, output.split())
    return bool(taken), count


def test_a_second_step_faults_no_pages_in():
    taken, kept = faults("keep")
    assert taken == (platform.libc_ver()[0] == "glibc")
    _, default = faults("default")
    if taken:
        assert default > 1000
        assert kept < default / 100
