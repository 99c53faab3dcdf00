"""What the commands share: flags, configs from files and command lines, exit codes.

A command prints one JSON object as its last line of stdout and exits with 0; a user's mistake is one line on stderr and
exit code 2; a run that was asked to stop, and saved what it had, exits with 75; anything else is 1. Nothing here
imports JAX, so that a mistyped flag is told at once.
"""

import ast
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from swin_jax.errors import RunError, UserError, did_you_mean

HELP_FLAGS = {"--help", "-h", "-help"}
RESTART = 75  # the exit code that asks for the same command again: EX_TEMPFAIL of sysexits.h


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a command returns that is to exit with another code than 0: the object it prints, if any, and the code."""

    result: dict[str, Any] | None
    code: int


Outcome = dict[str, Any] | Ended | None


def run_command(
    main: Callable[[flags.FlagValues, list[str]], Outcome],
    flag_values: flags.FlagValues,
    argv: Sequence[str] | None = None,
) -> None:
    """Run `main(flags, overrides)`, print the JSON object it returns, and end the process.

    `overrides` are the arguments `--config.some.key=value`, for commands that have a flag `config`.
    """
    sys.exit(_exit_code(main, flag_values, list(sys.argv if argv is None else argv)))


def run_subcommand(
    commands: Mapping[str, tuple[Callable[[flags.FlagValues, list[str]], Outcome], flags.FlagValues]],
    argv: Sequence[str] | None = None,
) -> None:
    """Run the command that the first argument names, as `run_command` does with its `main` and flags."""
    program, *arguments = sys.argv if argv is None else argv
    if arguments and arguments[0] in commands:
        main, flag_values = commands[arguments[0]]
        run_command(main, flag_values, [f"{program} {arguments[0]}", *arguments[1:]])
    if arguments and arguments[0] in HELP_FLAGS:
        module = next(iter(commands.values()))[0].__module__
        print(f"{sys.modules[module].__doc__}\nCommands: {', '.join(commands)}; --help after one lists its flags.")
        sys.exit(0)
    problem = f"unknown command {arguments[0]!r}" if arguments else "a command is missing"
    hint = did_you_mean(arguments[0], commands) if arguments else ""
    print(f"error: {problem}, known: {', '.join(commands)}{hint}", file=sys.stderr)
    sys.exit(2)


def _exit_code(main, flag_values: flags.FlagValues, argv: list[str]) -> int:
    _silence_libraries()
    try:
        if HELP_FLAGS & set(argv[1:]):
            print(f"{sys.modules[main.__module__].__doc__}\nFlags:{flag_values.get_help()}")
            return 0
        outcome = main(flag_values, _parse_flags(flag_values, argv))
        ended = outcome if isinstance(outcome, Ended) else Ended(outcome, 0)
        if ended.result is not None:
            print(json.dumps(ended.result), flush=True)
        return ended.code
    except UserError as error:
        code, line = 2, str(error)
    except flags.Error as error:
        code, line = 2, re.sub(r"^flag (--\w+)=None: .*", r"\1=... is missing", str(error))
    except (FloatingPointError, RunError) as error:
        code, line = 1, str(error)
    except KeyboardInterrupt:
        code, line = 130, "interrupted"
    except Exception:
        traceback.print_exc()
        return 1
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return code


def _parse_flags(flag_values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parse the flags and return the overrides of the config."""
    plain, overrides = argv[:1], []
    arguments = iter(argv[1:])
    for argument in arguments:
        if "config" in flag_values and re.match(r"--?config\.", argument):
            override = argument.lstrip("-").removeprefix("config.")
            overrides.append(override if "=" in override else f"{override}={next(arguments, '')}")
        else:
            plain.append(argument)
    rest = flag_values(plain)[1:]
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}")
    flags.FLAGS(argv[:1])  # Grain's worker processes read absl's global flags
    return overrides


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Return the config of a config file, `get_config() -> ConfigDict`, with overrides such as `"mesh.fsdp=2"`.

    Whatever the file leaves out has its default. ml_collections' own flag parser is not used: it reports a mistake in
    several lines, and cannot set a model argument that the file does not mention.
    """
    from swin_jax.training.default_config import default_config

    config = default_config()
    _fill(config, _run_config_file(pathlib.Path(path)).to_dict())
    for override in overrides:
        key, _, text = override.partition("=")
        *groups, name = key.split(".")
        group = config
        for part in groups:
            group = _get(config, group, part, key)
            if not isinstance(group, ConfigDict):
                raise UserError(f"config key {key!r} is none: {part!r} has no keys of its own")
        _set(config, group, name, key, parse_value(text, group.get(name)))
    return config


def config_from_json(values: dict[str, Any]) -> ConfigDict:
    """Return the config that a workdir's config.json holds."""
    from swin_jax.training.default_config import default_config

    config = default_config()
    _fill(config, _tuples(values))
    return config


def parse_value(text: str, current: Any) -> Any:
    """Read the value of an override: a string where there is one now, a Python literal or true or false elsewhere."""
    if isinstance(current, str):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def define_allow(flag_values: flags.FlagValues) -> None:
    """Define the flag of commands that open a run: which names in its config may be imported, see `named.py`."""
    about = "The 'module:Name's in the run's config that may be run."
    flags.DEFINE_list("allow", [], about, flag_values=flag_values)


def whole_numbers(flag: str, texts: Sequence[str]) -> tuple[int, ...]:
    """Read the values of a flag that takes one whole number or several, such as 3,5."""
    try:
        return tuple(map(int, texts)) or (int(""),)
    except ValueError:
        raise UserError(f"--{flag} takes whole numbers such as 3,5, not {','.join(texts)!r}") from None


def _run_config_file(path: pathlib.Path) -> ConfigDict:
    if not path.is_file():
        raise UserError(f"there is no config file {path}")
    try:
        with _importable_recipes(path):
            config = runpy.run_path(str(path))["get_config"]()
    except KeyError as error:
        if error.args != ("get_config",):
            raise UserError(f"{_where(path, error)}: {error!r}") from error
        raise UserError(f"the config file {path} has no function get_config") from None
    except AttributeError as error:
        unknown = re.search(r'Key "(\w+)" does not exist', str(error))
        if not unknown:
            raise UserError(f"{_where(path, error)}: {error}") from error
        raise UserError(f"{_where(path, error)}: unknown config key {unknown[1]!r}{_near(unknown[1])}") from error
    except Exception as error:
        raise UserError(f"{_where(path, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config() of {path} returns {type(config).__name__}, not a ConfigDict")
    return config


@contextlib.contextmanager
def _importable_recipes(path: pathlib.Path) -> Iterator[None]:
    """Let a config file import what configs share, `configs.imagenet.recipes`, whatever the working folder.

    Its own `configs` folder comes first, then that of this checkout; they are read anew for each config file.
    """
    own = [str(folder.parent) for folder in path.resolve().parents if folder.name == "configs"][:1]
    before, searched = set(sys.modules), list(sys.path)
    sys.path[:] = [*own, *searched, str(pathlib.Path(__file__).resolve().parents[1])]
    try:
        yield
    finally:
        sys.path[:] = searched
        for name in [name for name in sys.modules if name not in before and name.partition(".")[0] == "configs"]:
            del sys.modules[name]


def _where(path: pathlib.Path, error: Exception) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    return f"config file {path}, line {line}" if line else f"config file {path}"


def _fill(config: ConfigDict, values: dict[str, Any], prefix: str = "", root: ConfigDict | None = None) -> None:
    root = config if root is None else root
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(config.get(name), ConfigDict) and isinstance(value, dict):
            _fill(config[name], value, f"{key}.", root)
        else:
            _set(root, config, name, key, value)


def _get(root: ConfigDict, group: ConfigDict, name: str, key: str) -> Any:
    if name not in group:
        raise UserError(f"unknown config key {key!r}{_near(key, root)}")
    return group[name]


def _set(root: ConfigDict, group: ConfigDict, name: str, key: str, value: Any) -> None:
    """Set one key, as strict about types as a config can be without being a nuisance: 1 is a float, True no number."""
    if name not in group and not group.is_locked:
        group[name] = value
        return
    current = _get(root, group, name, key)
    wrong = f"config key {key!r} takes {_kind(current)}, not {value!r}"
    if isinstance(current, ConfigDict) or value is None or (isinstance(value, bool) and not isinstance(current, bool)):
        raise UserError(wrong)
    if isinstance(current, bool) and not isinstance(value, bool):
        raise UserError(wrong)
    if isinstance(current, tuple) and not isinstance(value, tuple | list):
        raise UserError(wrong)
    try:
        group[name] = value
    except (TypeError, ValueError) as error:
        raise UserError(wrong) from error


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", tuple: "a tuple"}
    return names.get(type(value), "keys of its own")


def _near(key: str, config: ConfigDict | None = None) -> str:
    """Return the hint at the nearest known key, compared by its whole path and by its last part."""
    from swin_jax.training.default_config import default_config
    from swin_jax.training.workdir import flatten

    known = list(flatten((config or default_config()).to_dict()))
    groups = [f"{group}." for group in default_config() if isinstance(default_config()[group], ConfigDict)]
    hint = did_you_mean(key, known + [group.rstrip(".") for group in groups])
    if hint:
        return hint
    by_name = {path.rpartition(".")[2]: path for path in reversed(known)}
    nearest = did_you_mean(key.rpartition(".")[2], by_name)
    return re.sub(r"'(.+)'", lambda match: repr(by_name[match[1]]), nearest) if nearest else ""


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _silence_libraries() -> None:
    """Keep stderr for what the user has to know: JAX, Orbax and XLA tell of their inner lives there."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("swin_jax").setLevel(logging.WARNING)
    for name in ("absl", "asyncio", "jax", "orbax", "grain"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
