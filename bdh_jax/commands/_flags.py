"""The flags of commands: ``--config`` with its overrides, and lists of numbers.

A configuration file is executed once. Its dataclass becomes a ``ConfigDict``, whose keys the flags override, and that a dataclass again.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import any_value, rebuild, to_config_dict
from bdh_jax.config.options import Options
from bdh_jax.config.paths import check_local, read_path
from bdh_jax.experiment import ExperimentConfig, experiment_in, load_experiment

# The flags that are defined here belong to the command that asks for them.
flags.disclaim_key_flags()

_Number = TypeVar("_Number", int, float)
Choice = TypeVar("Choice", bound=str)


@dataclasses.dataclass
class ConfigFlag:
    """What ``--config`` and its overrides give, once the command line is parsed."""

    value: ExperimentConfig | None = None
    argv: tuple[str, ...] = ()
    """The command line that it was read from."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that the command line overrides."""
        return tuple(_named(self.argv)[1])

    def with_variants(self, variants: str) -> ExperimentConfig:
        """The experiment with more variants than ``--config`` names, and the same overrides.

        Args:
          variants: joined by commas; empty for none.

        Raises:
          ConfigError: as :func:`read_config`, and if there is no ``--config``.
        """
        named = _named(self.argv)[0].get("config")
        if named is None:
            raise ConfigError("--config is missing: name an experiment, such as --config=nback (`bdh list` has all)")
        name, _, given = named.partition(":")
        joined = ",".join(filter(None, (given, variants)))
        # The flag that comes last counts.
        config, _ = read_config([*self.argv, f"--config={name}{':' * bool(joined)}{joined}"])
        if config is None:
            raise ConfigError(f"--config={named} names no experiment")
        return config


_CONFIG = ConfigFlag()


def define_config() -> ConfigFlag:
    """Define ``--config=NAME[:variant]``, whose keys are overridden by ``--config.key=value``.

    The name may also be the first argument, and the run in ``--workdir``, where the command has that flag, knows its own.
    """
    flags.DEFINE_string(
        "config",
        None,
        "Experiment and variants, such as nback:smoke (`bdh list` names all), or a file of your own, mine.py:variant. It may also stand "
        "alone, as the first argument. --config.KEY=VALUE changes a key (`bdh config nback` names all). Default: that of the run in "
        "--workdir.",
    )
    return _CONFIG


def define_path(name: str, text: str, *, several: bool = False, stream: bool = False) -> flags.FlagHolder[str | None]:
    """Define a flag that names a file or folder. Its value is the path, as :func:`bdh_jax.config.paths.read_path` reads it.

    Args:
      name: of the flag.
      text: its help.
      several: paths, folders or globs with commas between, which are read later, each by itself.
      stream: "-" is standard input, no path.
    """
    return flags.DEFINE(_PathParser(name, several, stream), name, None, text, serializer=flags.ArgumentSerializer())


def define_choice(name: str, default: Choice, choices: Sequence[Choice], text: str) -> flags.FlagHolder[Choice]:
    """Define a flag whose value is one of several words."""
    return cast("flags.FlagHolder[Choice]", flags.DEFINE_enum(name, default, choices, text))


def parse(argv: list[str], arguments: str = "") -> list[str]:
    """Parse the command line into absl's flags and the :class:`ConfigFlag`.

    Args:
      argv: the program and what was given.
      arguments: what the command takes besides flags, such as "RUN": paths; empty for nothing.

    Returns:
      The program's name, and the paths: everything else was a flag.

    Raises:
      flags.Error: for a flag that does not exist, or an ill-typed value.
      ConfigError: for what is no flag, and as :func:`read_config`.
    """
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    if "config" in flags.FLAGS:
        argv = with_flag(argv)
        _CONFIG.argv = tuple(argv)
        _CONFIG.value, argv = read_config(argv)
    try:
        rest = flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        # Absl would name the flag and its value once more.
        raise error.__context__ if isinstance(error.__context__, ConfigError) else error from None
    if arguments:
        return [rest[0], *(read_path(argument, arguments) for argument in rest[1:])]
    if len(rest) > 1:
        first = ", and an experiment comes before them" if "config" in flags.FLAGS else ""
        raise ConfigError(f"{rest[1]!r} is not a flag; flags are written --name=value{first}")
    return rest


def joins_others() -> bool:
    """Whether the configuration asks for several processes, which have to find each other before JAX looks at its devices."""
    return _CONFIG.value is not None and _CONFIG.value.mesh.distributed


def with_flag(argv: Sequence[str]) -> list[str]:
    """The command line with an experiment that is its first argument made a flag.

    Raises:
      ConfigError: if a flag names one as well.
    """
    program, *rest = argv
    if not rest or rest[0].startswith("-"):
        return list(argv)
    named = next((argument for argument in rest if re.match(r"--?config(=|$)", argument)), None)
    if named is not None:
        raise ConfigError(f"{rest[0]!r} and {named} name an experiment each; give one of them")
    return [program, f"--config={rest[0]}", *rest[1:]]


def read_config(argv: Sequence[str]) -> tuple[ExperimentConfig | None, list[str]]:
    """The experiment that ``--config`` and its overrides describe, and the command line without the overrides.

    Without ``--config`` it is that of the run in ``--workdir``, and None if there is none.

    Raises:
      ConfigError: for a missing file, an unknown variant, a misspelt key, or a value that is ill-typed or out of range.
      flags.Error: for a value that is none of its key's type.
    """
    named, keys = _named(argv)
    if "config" in named:
        template = load_experiment(named["config"])
    else:
        template = experiment_in(Path(read_path(named["workdir"], "--workdir"))) if named.get("workdir") else None
    if template is None:
        if keys:
            raise ConfigError(
                f"--config.{keys[0]} needs a configuration to change: name an experiment, such as --config=nback (`bdh list` has all)"
            )
        return None, list(argv)
    if not keys:
        return template, list(argv)
    values = to_config_dict(template)
    for key in keys:
        _check_key(template, values, key, f"--config.{key}")
    rest = _override(values, argv)
    return rebuild(template, values), rest


def read_values(template: ExperimentConfig, flag: str, texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """What a flag says that is given as ``--FLAG=KEY=VALUE,VALUE,…``, once for each key.

    A value is what ``--config.KEY=VALUE`` makes of it. One that has commas of its own, a tuple, stands in parentheses: ``(4,8),(16,)``.

    Args:
      template: the experiment that has the keys.
      flag: its name.
      texts: what was given.

    Returns:
      Key → its values.

    Raises:
      ConfigError: for a key that does not exist or comes twice, or a value that is none of its type. Ranges are not looked at.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        if not key or not values:
            raise ConfigError(
                f"--{flag}={text} must be KEY=VALUE,VALUE,…, such as --{flag}=optimizer.learning_rate=1e-3,2e-3"
            )
        if key in found:
            raise ConfigError(f"--{flag} names {key} twice; give all its values at once, --{flag}={key}=VALUE,VALUE,…")
        found[key] = tuple(_read_value(template, flag, key, value) for value in _items(flag, text, values))
    return found


def _items(flag: str, text: str, values: str) -> list[str]:
    """What stands between commas that are in no parentheses."""
    items, depth = [""], 0
    for char in values:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    if depth:
        raise ConfigError(f"--{flag}={text}: a parenthesis is not closed; a tuple is written (4,8)")
    if not all(items):
        raise ConfigError(f"--{flag}={text}: a value is empty; write KEY=VALUE,VALUE,…")
    return items


def _read_value(template: ExperimentConfig, flag: str, key: str, text: str) -> Any:
    values = to_config_dict(template)
    _check_key(template, values, key, f"--{flag}={key}")
    if isinstance(_value_at(values, key), ml_collections.ConfigDict):
        raise ConfigError(f"--{flag}={key}: config.{key} has keys of its own; name one of them")
    # Names in a tuple need no quotes, as they need none on their own.
    bare = re.fullmatch(r"\(([A-Za-z_]\w*(?:,[A-Za-z_]\w*)*),?\)", text)
    try:
        _override(values, ["", f"--config.{key}={bare[1] if bare else text}"])
    except flags.Error as error:
        raise ConfigError(f"--{flag}={key}={text}: {str(error).partition(': ')[2] or error}") from None
    except ConfigError as error:
        raise ConfigError(f"--{flag}={key}={text}: {error}") from None
    return _value_at(values, key)


def _value_at(values: ml_collections.ConfigDict, key: str) -> Any:
    found: Any = values
    for name in key.split("."):
        found = found[name]
    return found


def numbers(flag: str, texts: Sequence[str], kind: type[_Number]) -> list[_Number]:
    """The numbers of a flag that is a list.

    Raises:
      ConfigError: if one of them is no number.
    """
    try:
        return [kind(text) for text in texts]
    except ValueError:
        raise ConfigError(f"--{flag}={','.join(texts)} must be numbers with commas between them") from None


class _PathParser(flags.ArgumentParser[str]):
    """Parses a path. An empty one is as good as none: what a flag without a value means is the command's to say."""

    syntactic_help = ""

    def __init__(self, name: str, several: bool, stream: bool):
        self._where, self._several, self._stream = f"--{name}", several, stream

    def parse(self, argument: str) -> str:
        if self._several:
            check_local(argument, self._where)
        if self._several or not argument or self._stream and argument == "-":
            return argument
        return read_path(argument, self._where)

    def flag_type(self) -> str:
        return "path"


class _OptionalParser(flags.ArgumentParser):
    """Parses what ``parser`` parses, and ``None``; whether None is allowed there is decided by the dataclass."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument is None or argument in ("None", "none") else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


class _NamesParser(tuple_parser.TupleParser):
    """Parses ``0,1,2`` and also ``n2,n4``, names without quotes."""

    def parse(self, argument: Any) -> tuple:
        if isinstance(argument, str) and re.fullmatch(r"[A-Za-z_]\w*(,[A-Za-z_]\w*)*", argument):
            return tuple(argument.split(","))
        return super().parse(argument)


def _named(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What a command line gives for ``--config`` and ``--workdir``, and the keys that it overrides."""
    named: dict[str, str] = {}
    keys = []
    for index, argument in enumerate(argv):
        if match := re.fullmatch(r"--?(config|workdir)(?:=(.*))?", argument):
            named[match[1]] = match[2] if match[2] is not None else next(iter(argv[index + 1 :]), "")
        elif match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            keys.append(match.group(1))
    return named, keys


def _check_key(template: ExperimentConfig, values: ml_collections.ConfigDict, key: str, where: str) -> None:
    """Refuse a key that does not exist, in a message that begins with ``where``. Options depend on another key: any one is made room for
    here, and checked by its part."""
    node: Any = template
    parents = "config"
    for name in key.split("."):
        if isinstance(node, Options):
            if name not in values:
                with values.unlocked():
                    values[name] = any_value()
            option = node.get(name)
            node = None
            if isinstance(option, Options):
                inner: Any = values[name]
                node, values = option, inner
        elif dataclasses.is_dataclass(node):
            names = [field.name for field in dataclasses.fields(node)]
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean {parents}.{close[0]}?" if close else ""
                raise ConfigError(
                    f"{where}: {parents} has no key {name!r}.{hint} Valid keys of {parents}: {', '.join(names)}"
                )
            node = getattr(node, name)
            if isinstance(node, Options) or dataclasses.is_dataclass(node):
                inner = values[name]
                values = inner
        else:
            raise ConfigError(f"{where}: {parents} is a single value and has no keys")
        parents = f"{parents}.{name}"


def _override(values: ml_collections.ConfigDict, argv: Sequence[str]) -> list[str]:
    """Let the overrides of a command line change ``values``. Returns the rest of it."""
    config_flags.register_flag_parser_for_type(float, _OptionalParser(flags.FloatParser()))
    config_flags.register_flag_parser_for_type(int, _OptionalParser(flags.IntegerParser()))
    config_flags.register_flag_parser_for_type(tuple, _NamesParser())
    overrides = flags.FlagValues()
    overrides.set_gnu_getopt(True)
    # The library makes a flag of every override that it sees here; --config itself, which names the file, is the command's.
    keys = [argument for argument in argv if not re.match(r"--?config(=|$)", argument)]
    config_flags.DEFINE_config_dict("config", values, flag_values=overrides, sys_argv=keys)
    delattr(overrides, "config")
    return overrides(list(argv), known_only=True)
