"""Freed memory is kept: counted in page faults, not in seconds."""

import platform
import subprocess
import sys

PROGRAM = """
import resource
from bdh_jax.commands._allocator import keep_freed_memory
def step():
    for _ in range(4):
        b"x" * (64 << 20)
def faults_of_a_second_step():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
default = faults_of_a_second_step()
print(default, int(keep_freed_memory()), faults_of_a_second_step())
"""


def test_a_second_step_faults_no_pages_in():
    output = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    default, taken, kept = map(int, output.split())
    assert taken == (platform.libc_ver()[0] == "glibc")
    if taken:
        assert default > 1000
        assert kept < default / 100
