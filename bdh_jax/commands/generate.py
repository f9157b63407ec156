"""Write text with a trained model: ``bdh generate --workdir=runs/text --prompt="To be, or"``.

The prompt is read once, in chunks; then every token costs the same, however long the text has become. The text streams to standard
output, messages go to standard error.

    --prompt_file=FILE         read a long prompt from a file, or from "-",
                               standard input
    --prompts=FILE --out=FILE  many prompts, one JSON string or {"prompt": …} a
                               line; each is continued as if it were alone
    --save_state=FILE          what the model has read and written, to go on
                               from in another process
    --state=FILE               go on from there, with or without a prompt
    --token_step=off           read and write everything at every token, for
                               comparison
    --temperature --top_k --top_p --min_p --seed --stop --max_tokens
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags

from bdh_jax.commands._flags import define_choice, define_path
from bdh_jax.commands._output import new_file, write_output
from bdh_jax.config import ConfigError, require
from bdh_jax.console import NOT_READ, Progress, leave_unread
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.experiment import load, tokenizer_of
from bdh_jax.generation.sampling import GenerationState, Prompts, Sampling, check_memory, generate, prefill
from bdh_jax.generation.state_files import load_state, save_state
from bdh_jax.generation.token_steps import prefill_and_choose
from bdh_jax.models.base import Model
from bdh_jax.models.bdh import BDH
from bdh_jax.runs.checkpoint import WHICH
from bdh_jax.types import Slow

QUIET = True
"""The text is all that it writes, unless somebody watches."""
_LOGGER = logging.getLogger("bdh_jax")

_WORKDIR = define_path("workdir", "Folder of a training run on text (of one seed).")
_WHICH = define_choice("which", "best", WHICH, "Which checkpoint to use.")
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.")
_PROMPT_FILE = define_path("prompt_file", 'File whose content is continued; "-" is standard input.', stream=True)
_PROMPTS = define_path("prompts", 'File of prompts, a JSON string or {"prompt": …} on each line.')
_OUT = define_path("out", "New file for the texts that --prompts asks for, as JSON lines.")
_STATE = define_path("state", "Go on from this state, which --save_state wrote.")
_SAVE_STATE = define_path("save_state", "New file for the state at the end.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "Tokens to write, of each text.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Logits are divided by it; 0 takes the most likely token.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Keep the k most likely tokens.")
_TOP_P = flags.DEFINE_float("top_p", None, "Keep the most likely tokens that have this probability together.")
_MIN_P = flags.DEFINE_float("min_p", None, "Keep tokens at least this many times as likely as the most likely one.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the sampling; prompt b of several has seed + b.", lower_bound=0, upper_bound=2**64 - 1
)
_TOKEN_STEP = flags.DEFINE_enum(
    "token_step",
    "auto",
    ["auto", "off"],
    '"auto" lets writes wait and reads active rows alone, by what is active in the prompt, where that is faster; "off" reads and writes '
    "everything at every token. The text is the same.",
)
_STOP = flags.DEFINE_multi_string("stop", [], "End a text after this string.")


def main(argv: Sequence[str]) -> int:
    """Write what the flags ask for.

    Returns:
      0, or 141 when what reads the text wanted no more of it.

    Raises:
      ConfigError: a flag is missing or wrong.
      StateError: the state cannot be read, or is of another model.
    """
    del argv
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/text")
    given = [f"--{flag.name}" for flag in (_PROMPT, _PROMPT_FILE, _PROMPTS) if flag.value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other; give one of them")
    if not given and not _STATE.value:
        raise ConfigError('there is nothing to continue: give --prompt="…", --prompt_file, --prompts or --state')
    if bool(_PROMPTS.value) != bool(_OUT.value):
        raise ConfigError("--prompts and --out go together: many texts are written to a file")
    if _PROMPTS.value and (_STATE.value or _SAVE_STATE.value):
        raise ConfigError("--prompts writes each text from an empty state; leave out --state and --save_state")
    for flag in (_OUT, _SAVE_STATE):
        new_file(flag.value, flag.name)
    workdir = Path(_WORKDIR.value)
    config, slow = load(workdir, _WHICH.value)
    require(
        config.has_state,
        f"--workdir={workdir} holds a {type(config).__name__.removesuffix('Config')}, which keeps no state to go on from; name a run of a "
        "model that keeps one, such as a BDH",
    )
    tokenizer = tokenizer_of(workdir)
    model = config.build()
    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MIN_P.value, vocab_size=tokenizer.vocab_size)
    if _PROMPTS.value and _OUT.value:
        texts = _write_many(model, slow, tokenizer, sampling, _read_prompts(Path(_PROMPTS.value)))
        write_output(Path(_OUT.value), texts)
        return 0
    return 0 if _write_one(model, slow, tokenizer, sampling) else NOT_READ


def _write_one(model: Model, slow: Slow, tokenizer: Tokenizer, sampling: Sampling) -> bool:
    """Stream one text. Returns whether all of it was read; the state is saved in any case."""
    prompt = _prompt()
    before = load_state(_STATE.value, model, slow) if _STATE.value else None
    if before is not None and before.logits.shape[0] != 1:
        raise ConfigError(f"--state={_STATE.value} holds {before.logits.shape[0]} texts; this command goes on with one")
    if prompt:
        model, state = _read(model, slow, [tokenizer.encode(prompt)], before)
    elif before is not None:
        state = before
    else:
        raise ConfigError("the prompt is empty: the first token needs something before it; give at least one character")
    pieces: list[bytes] = []
    newest = [state]
    stream = _Stream()
    started = time.perf_counter()
    stop = _stopper([pieces], tokenizer)
    for (token,) in generate(
        model,
        slow,
        state,
        max_tokens=_MAX_TOKENS.value,
        sampling=sampling,
        seeds=_SEED.value,
        stop=stop,
        on_state=lambda state: newest.__setitem__(0, state),
    ):
        if token is None or not stream.write(tokenizer.decode([token])):
            break
    stream.close()
    seconds = time.perf_counter() - started
    if pieces:
        _LOGGER.info("%d tokens, %.1f a second%s", len(pieces), len(pieces) / seconds, _over_budget(newest[0]))
    if _SAVE_STATE.value:
        save_state(_SAVE_STATE.value, newest[0], model, slow)
    return stream.is_read


def _write_many(model: Model, slow: Slow, tokenizer: Tokenizer, sampling: Sampling, prompts: list[str]) -> str:
    """What is written for each prompt, a line of JSON each."""
    ids = [tokenizer.encode(prompt.encode()) for prompt in prompts]
    model, state = _read(model, slow, ids, None)
    pieces: list[list[bytes]] = [[] for _ in prompts]
    stop = _stopper(pieces, tokenizer)
    steps = generate(model, slow, state, max_tokens=_MAX_TOKENS.value, sampling=sampling, seeds=_SEED.value, stop=stop)
    with Progress("writing", _MAX_TOKENS.value) as progress:
        for _ in steps:
            progress.advance()
    rows = [
        {"prompt": prompt, "text": b"".join(written).decode(errors="replace")}
        for prompt, written in zip(prompts, pieces, strict=True)
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _stopper(pieces: list[list[bytes]], tokenizer: Tokenizer) -> Callable[[int, list[int]], bool]:
    """Notes what each text says, and ends it once it contains one of the strings of ``--stop``."""
    stops = [stop.encode(errors="surrogateescape") for stop in _STOP.value]
    longest = max(map(len, stops), default=0)

    def stop(row: int, tokens: list[int]) -> bool:
        piece = tokenizer.decode(tokens[-1:])
        pieces[row].append(piece)
        if not stops:
            return False
        # A stop string ends in the newest token; how far back it begins is bounded by its length, but tokens may be empty.
        tail, index = b"", len(pieces[row]) - 1
        while index >= 0 and len(tail) < longest + len(piece):
            tail, index = pieces[row][index] + tail, index - 1
        return any(text in tail for text in stops)

    return stop


def _over_budget(state: GenerationState) -> str:
    """How many tokens had more active rows than they were to have; empty where that is not asked."""
    steps = state.fast.token_steps
    if steps is None or not int(steps.taken):
        return ""
    return f"; {int(steps.over_budget) / int(steps.taken):.0%} had more active than the prompt and read everything"


def _read(model: Model, slow: Slow, prompts: Prompts, state: GenerationState | None) -> tuple[Model, GenerationState]:
    """Read prompts, with a bar if that takes long; and the same model with the token step that is to write."""
    batch, longest = len(prompts), max(len(prompt) for prompt in prompts)
    check_memory(model.config, batch, _available_memory())
    with Progress("reading", longest, shown=longest > 4096) as bar:

        def progress(done: int, total: int) -> None:
            del total
            bar.to(done)

        if _TOKEN_STEP.value == "off" or not isinstance(model, BDH):
            return model, prefill(model, slow, prompts, state, progress=progress)
        state, token_step = prefill_and_choose(model, slow, prompts, state, progress=progress)
        return BDH(dataclasses.replace(model.config, token_step=token_step)), state


def _available_memory() -> int | None:
    """Free bytes on the first device, or of the machine; None where neither is known."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


class _Stream:
    """Writes bytes to standard output as valid text, as soon as a character is complete."""

    def __init__(self):
        if sys.stdout is None:
            raise ConfigError("standard output is closed: the text has nowhere to go; leave it open, or write to /dev/null")
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.is_read = True

    def write(self, piece: bytes) -> bool:
        """Returns whether anybody reads it."""
        return self._write(self._decoder.decode(piece))

    def close(self) -> None:
        self._write(self._decoder.decode(b"", final=True) + "\n")

    def _write(self, text: str) -> bool:
        if self.is_read:
            try:
                sys.stdout.write(text)
                sys.stdout.flush()
            except BrokenPipeError:  # there is still a state to save
                self.is_read = not leave_unread()
        return self.is_read


def _prompt() -> bytes:
    if _PROMPT_FILE.value == "-":
        try:
            return sys.stdin.buffer.read()
        except (AttributeError, OSError) as error:  # there is no sys.stdin when it was closed
            raise ConfigError(
                "--prompt_file=- reads standard input, and that is closed; name a file, or write to it"
            ) from error
    if _PROMPT_FILE.value:
        try:
            return Path(_PROMPT_FILE.value).read_bytes()
        except OSError as error:
            raise ConfigError(f"--prompt_file={_PROMPT_FILE.value} cannot be read: {error.strerror}") from error
    return (_PROMPT.value or "").encode(errors="surrogateescape")


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts={path} cannot be read: {error}") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number}: no JSON ({error})") from error
        prompt = row.get("prompt") if isinstance(row, dict) else row
        if not isinstance(prompt, str) or not prompt:
            raise ConfigError(f'{path}, line {number}: neither a string nor {{"prompt": …}} with some text in it')
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{path}, line {number}: half a surrogate pair at character {error.start} is no text; remove it"
            ) from None
        prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"{path} holds no prompt; write one on each line, as JSON")
    return prompts
