"""The commands around text: preparing, training, writing, scoring."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bdh_jax.data.tokenizer import load_tokenizer, train_tokenizer
from tests import processes as commands

WORDS = [
    "to",
    "be",
    "or",
    "not",
    "to",
    "be",
    "that",
    "is",
    "the",
    "question",
    "whether",
    "tis",
    "nobler",
    "in",
    "the",
    "mind",
]


def _run(module, *arguments, stdin=b""):
    status, output, errors = commands.run(module, *arguments, stdin=stdin)
    return status, output, errors.decode()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained model under a BPE: its workdir."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    text = " ".join(rng.choice(WORDS, 3000)).encode() + " ünïcödé".encode() * 50
    (folder / "text.txt").write_bytes(text)
    (folder / "bpe.json").write_text(train_tokenizer([text], 290))
    status, _, errors = _run(
        "bdh_jax",
        "train",
        "--config=configs/text.py:fast,smoke",
        f"--workdir={folder / 'run'}",
        f"--config.data.path={folder / 'text.txt'}",
        f"--config.data.tokenizer={folder / 'bpe.json'}",
        "--config.model.vocab_size=290",
    )
    assert status == 0, errors
    (folder / "bpe.json").rename(folder / "elsewhere.json")  # the run keeps its own
    return folder / "run"


def _generate(run, *arguments, stdin=b""):
    return _run("bdh_jax", "generate", f"--workdir={run}", *arguments, stdin=stdin)


def test_a_text_saved_and_continued_is_the_text_written_at_once(run, tmp_path):
    greedy = ["--temperature=0"]
    status, whole, errors = _generate(run, "--prompt=to be or", *greedy, "--max_tokens=24")
    assert (status, errors) == (0, "")
    assert whole.endswith(b"\n")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("to be or")
    state = tmp_path / "state"
    _, first, _ = _generate(run, f"--prompt_file={prompt}", *greedy, "--max_tokens=10", f"--save_state={state}")
    status, rest, errors = _generate(run, f"--state={state}", *greedy, "--max_tokens=14")
    assert status == 0, errors
    assert first[:-1] + rest == whole
    # Reading goes on where writing stopped.
    status, _, errors = _generate(run, f"--state={state}", "--prompt= not", "--max_tokens=2", f"--save_state={state}")
    assert status == 2
    assert f"--save_state={state} exists; name another file" in errors


def test_output_is_valid_utf8_and_prompts_are_continued_as_if_alone(run, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('"to\u2028be"\n\n{"prompt": "ünï"}\n')
    status, printed, errors = _generate(
        run, f"--prompts={prompts}", f"--out={out}", "--max_tokens=12", "--seed=5", "--temperature=2", "--top_k=200"
    )
    assert (status, printed) == (0, b""), errors
    rows = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    assert [row["prompt"] for row in rows] == ["to\u2028be", "ünï"]
    # The second of several has the next seed.
    status, alone, _ = _generate(
        run, "--prompt_file=-", "--max_tokens=12", "--seed=6", "--temperature=2", "--top_k=200", stdin="ünï".encode()
    )
    assert status == 0
    assert alone.decode().removesuffix("\n") == rows[1]["text"]


def _piped(run, *arguments, redirect="", **variables):
    """A process with real pipes, which the server of the other tests has none of."""
    command = [sys.executable, "-m", "bdh_jax", "generate", f"--workdir={run}", "--temperature=0", *arguments]
    shell = ["sh", "-c", f'exec "$0" "$@" {redirect}', *command]
    return subprocess.Popen(
        shell, cwd=commands.ROOT, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_who_reads_no_further_ends_the_text_and_the_state_is_saved(run, tmp_path):
    process = _piped(run, "--prompt=to be", "--max_tokens=100000", f"--save_state={tmp_path / 'state'}")
    process.stdout.read(1)
    process.stdout.close()
    assert (process.wait(300), process.stderr.read()) == (141, b"")
    status, output, errors = _generate(run, f"--state={tmp_path / 'state'}", "--max_tokens=3")
    assert (status, errors) == (0, "")
    assert output


def test_an_output_that_is_not_utf8_takes_what_it_can(run):
    prompt = "--prompt=to be or ünïcödé ünïcödé"
    status, whole, _ = _generate(run, prompt, "--seed=1", "--temperature=3", "--max_tokens=40")
    assert status == 0
    process = _piped(run, prompt, "--seed=1", "--temperature=3", "--max_tokens=40", PYTHONIOENCODING="ascii")
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, b"")
    assert not whole.isascii()
    assert output == whole.decode().encode("ascii", "replace")


def test_a_closed_input_is_one_message(run):
    process = _piped(run, "--prompt_file=-", redirect="<&-")
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (2, b"")
    assert errors == b"error: --prompt_file=- reads standard input, and that is closed; name a file, or write to it\n"


def test_prompts_with_a_mark_at_the_start_are_read_and_half_a_surrogate_pair_is_refused_before_any_work(run, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('"to be"\n', encoding="utf-8-sig")
    status, _, errors = _generate(run, f"--prompts={prompts}", f"--out={out}", "--max_tokens=2")
    assert (status, errors) == (0, "")
    assert json.loads(out.read_text())["prompt"] == "to be"
    out.unlink()
    for line, message in (
        ('"ab\\ud800"', "line 2: half a surrogate pair at character 2"),
        ("[" * 100_000, "line 2: no JSON"),
    ):
        prompts.write_text(f'"to be"\n{line}\n')
        status, _, errors = _generate(run, f"--prompts={prompts}", f"--out={out}", "--max_tokens=2")
        assert status == 2
        assert message in errors
        assert "Traceback" not in errors
        assert not out.exists()


def test_a_text_ends_after_a_stop_string(run):
    whole = _generate(run, "--prompt=to be", "--temperature=0", "--max_tokens=30")[1].decode().removesuffix("\n")
    stop = whole[7:10]
    status, cut, _ = _generate(run, "--prompt=to be", "--temperature=0", "--max_tokens=30", f"--stop={stop}", "--stop=never")
    assert status == 0
    tokenizer = load_tokenizer(run / "tokenizer.json")
    text = cut.decode().removesuffix("\n")
    assert whole.startswith(text)
    assert stop in text
    # It ends with the token that completes the string.
    assert stop not in tokenizer.decode(tokenizer.encode(text.encode())[:-1]).decode(errors="replace")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to continue"),
        (["--prompt=a", "--prompts=b"], "--prompt and --prompts exclude each other"),
        (["--prompt="], "the prompt is empty"),
        (["--prompts=b"], "--prompts and --out go together"),
        (["--prompt_file=/nowhere"], "--prompt_file=/nowhere cannot be read"),
        (["--state=/nowhere"], "/nowhere does not exist"),
        (["--prompt=a", "--top_p=2"], "top_p=2.0 must lie in (0, 1]"),
        (["--prompt=a", "--seed=-1"], "--seed=-1"),
        (["--prompt=a", f"--seed={2**64}"], f"--seed={2**64}"),
    ],
)
def test_mistakes_are_one_message(run, arguments, message):
    status, output, errors = _generate(run, *arguments)
    assert (status, output) == (2, b"")
    assert message in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1


def test_token_ids_that_stand_for_something_else_are_not_scored(run):
    status, output, errors = _run("bdh_jax", "evaluate", f"--workdir={run}", "--config=configs/nback.py:smoke")
    assert (status, output) == (2, b"")
    assert "the token ids of the task 'nback' are integers, but the model" in errors
    assert "they are tokens of" in errors


def test_a_run_is_scored_beyond_its_training_length(run, tmp_path):
    (run.parent / "elsewhere.json").rename(run.parent / "bpe.json")
    # Training may validate on a part; what is scored here is always the whole text.
    record = json.loads((run / "run.json").read_text())
    del record["digest"]
    record["config"]["task"]["evaluation_windows"] = 1
    (run / "run.json").write_text(json.dumps(record))
    status, output, errors = _run(
        "bdh_jax", "score-text", f"--workdir={run}", f"--out={tmp_path}", "--context=128", "--rows=2"
    )
    assert status == 0, errors
    printed = output.decode()
    for expected in ("empty state every 32 tokens", "carried state", "fast_off", "64 – 127", "state of one text"):
        assert expected in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["last"] for row in results["by_position"]["run"]] == [63, 127]
    # The same number, by the same way, as training reports.
    trained = json.loads((run / "results.json").read_text())["evaluation"]["validation"]["bits_per_byte"]
    assert results["whole"]["empty state every 32 tokens"] == [trained]
    assert (tmp_path / "figure.png").stat().st_size > 1000
    status, _, errors = _run("bdh_jax", "score-text", f"--workdir={run}", f"--out={tmp_path}")
    assert status == 2
    assert "results.json exists; name another folder with --out, or pass --overwrite" in errors
    text = run.parent / "text.txt"
    text.write_bytes(text.read_bytes() + b" more")
    for more, message in (([], "holds a run on another text"), ([f"--out={text}/x"], "text.txt is a file")):
        status, _, errors = _run(
            "bdh_jax", "score-text", f"--workdir={run}", f"--out={tmp_path / 'b'}", "--context=64", *more
        )
        assert (status, "Traceback" in errors) == (2, False)
        assert message in errors


def test_text_is_prepared_and_trained_on(tmp_path):
    stories = tmp_path / "stories.jsonl"
    stories.write_text("".join(json.dumps({"text": f"{' '.join(WORDS)} {i}"}) + "\n" for i in range(60)))
    arguments = [f"--files={stories}", f"--out={tmp_path / 'prepared'}", "--validation_share=0.3"]
    status, output, errors = _run("bdh_jax", "prepare", *arguments)
    assert status == 0, errors
    assert "60 documents, tokenizer bytes" in output.decode()
    run = [f"--config.data.path={tmp_path / 'prepared'}", "--config.train.steps=4", "--config=configs/text.py:gpt,smoke"]
    status, output, errors = _run("bdh_jax", "train", run.pop(), *run, f"--workdir={tmp_path / 'run'}")
    assert status == 0, errors
    assert "bits per byte" in output.decode()
    status, _, errors = _run("bdh_jax", "generate", f"--workdir={tmp_path / 'run'}", "--prompt=to")
    assert status == 2
    assert "holds a GPT, which keeps no state to go on from" in errors
    # A damaged shard is one message, and so is too short a text.
    shard = tmp_path / "prepared" / "train-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    status, _, errors = _run("bdh_jax", "train", "--config=configs/text.py:smoke", *run, f"--workdir={tmp_path / 'other'}")
    assert status == 2
    assert "train-00000.npy or its starts file is damaged" in errors
    assert "Traceback" not in errors
