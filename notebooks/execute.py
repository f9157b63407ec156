"""Execute notebooks in full, one after another, and store their outputs in place: ``python notebooks/execute.py [NAME.ipynb …]``.

What only tells of the machine, times and versions, is not stored. A notebook that fails is left as it was.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
LIMIT = 900
"""Seconds that a cell may take."""


def main(arguments: list[str]) -> None:
    """Execute the notebooks that are named, or all."""
    for path in [Path(name) for name in arguments] or sorted(FOLDER.glob("*.ipynb")):
        start = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook, timeout=LIMIT, record_timing=False, resources={"metadata": {"path": str(path.resolve().parent)}}
        )
        client.execute()
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
