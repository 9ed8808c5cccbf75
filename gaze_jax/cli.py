"""What every command of launch/ shares: flags to a Config, errors to a line."""

import contextlib
import dataclasses
import importlib.util
import logging as py_logging
import os
import pathlib
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_dict
from ml_collections import config_flags

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import fields
from gaze_jax import foreign
from gaze_jax import json_file
from gaze_jax import plugins
from gaze_jax import schema
from gaze_jax import storage
from gaze_jax.runtime import memory
from gaze_jax.runtime import processes

_PREFIX = "--config="
_UNWIND_SECONDS = 30  # for an interrupted command to close what it has open


def main(
  function: Callable[..., int | None],
  *,
  config: bool = False,
  command: bool = False,
  leave: Callable[[str | int], NoReturn] = sys.exit,
) -> None:
  """Runs a command; exits with 1 and one line on a user's mistake.

  Args:
    function: reads absl flags; takes no arguments, or the words of `command`;
      returns the exit code if it is not 0.
    config: whether the command takes `--config=FILE` and overrides such as
      `--config.train.steps=10`; they end up in `read_config`.
    command: whether it takes words that are no flags of its own, after `--`.
    leave: ends the process, with an exit code or with a message and 1; of
      several processes each needs `runtime.processes.leave`.
  """
  memory.keep_freed_pages()
  argv = sys.argv
  try:
    if config:
      argv = _define_config(argv)
    app.run(
      lambda rest: _run(function, rest, command, leave),
      argv=argv,
      flags_parser=_parse,
    )
  except errors.GazeError as error:
    leave(f"error: {error}")


def read_config() -> config_lib.Config:
  """The checked config of a command that was started with `config=True`."""
  return config_lib.from_config_dict(flags.FLAGS.config)


def read_recipes(
  path: pathlib.Path,
) -> dict[str, tuple[config_lib.Config, str]]:
  """A checked config, and the topology that it is for, by name.

  Args:
    path: a config file with `names()`, whose `get_config` takes a name.
  """

  def config(name: str) -> config_lib.Config:
    return config_lib.from_config_dict(
      config_lib.to_dict(_load(f"{path}:{name}"))
    )

  return {
    name: (config(name), to) for name, to in _module(path).names().items()
  }


def read_model() -> config_lib.ModelConfig:
  """The model of such a command's config, whatever data it would train on."""
  return config_lib.parse(flags.FLAGS.config).model


def whole_numbers(flag: flags.FlagHolder) -> list[int] | None:
  """The numbers of a list flag, such as --layers=0,2; None if it is not set."""
  if flag.value is None:
    return None
  try:
    return [int(v) for v in flag.value]
  except ValueError:
    raise errors.GazeError(
      f"--{flag.name}={','.join(flag.value)}: give whole numbers, such as 0,2"
    ) from None


def budgets(flag: flags.FlagHolder) -> list[int | float] | None:
  """K, as whole numbers, and shares, with a point, of a list flag, if set."""
  if flag.value is None:
    return None
  try:
    out = [float(v) if "." in v else int(v) for v in flag.value]
  except ValueError:
    out = []
  if not out or any(
    not 0 <= b <= (1 if isinstance(b, float) else b) for b in out
  ):
    raise errors.GazeError(
      f"--{flag.name}={','.join(flag.value)}: give K as whole numbers from 0,"
      " and shares as 0.0 to 1.0, such as 1,4,0.25"
    )
  return out


def define_path(
  name: str, what: str, default: str | None = None, *, bucket: bool = False
) -> flags.FlagHolder:
  """Defines a flag for a file or directory, which no address can be.

  Args:
    name: of the flag.
    what: it is, for --help.
    default: where it is not given.
    bucket: whether it may be in one of Google's: gs://...
  """
  holder = flags.DEFINE_string(name, default, what)

  def check(path: str | None) -> bool:
    in_bucket = bucket and path and path.startswith(storage.SCHEME)
    if path and foreign.is_address(path) and not in_bucket:
      takes = " or gs://BUCKET/DIR are" if bucket else " are"
      raise errors.GazeError(
        f"--{name}={path}: an address, and files and directories{takes} needed;"
        " mount the bucket, and give its path here"
      )
    return True

  flags.register_validator(name, check)
  return holder


def define_file(name: str, what: str) -> flags.FlagHolder:
  """Defines a flag for a file to write, whose folder must be there already."""
  holder = define_path(name, what)
  there = lambda path: path is None or errors.check_folder(path) is None
  flags.register_validator(name, there)
  return holder


def define_options() -> Callable[[], dict[str, Any]]:
  """Defines the flags of how a question is answered; see `api.Request`.

  Returns:
    What gives their values, by the names of `api.Request`, once parsed.
  """
  define = flags.DEFINE_float
  given = [
    flags.DEFINE_integer("top_k", None, "K, the budget", 0),
    define("share", None, "share of the regions to read", 0, 1),
    flags.DEFINE_integer("max_tokens", 64, "of an answer, at most", 1),
    flags.DEFINE_multi_string("stop", [], "text that ends an answer"),
    define("temperature", 0.0, "0 is greedy", 0),
    define("top_p", 1.0, "share of probability to sample from", 0, 1),
    flags.DEFINE_integer("sample_top_k", 0, "tokens to sample from; 0: all", 0),
    flags.DEFINE_integer("seed", 0, "of sampling", 0),
    flags.DEFINE_integer("frames", 8, "taken of a video", 1),
  ]
  return lambda: {flag.name: flag.value for flag in given}


def define_placement(*, answers: bool = True) -> Callable[[], dict[str, Any]]:
  """Defines the flags of where a model is held, and how; see `api.load`.

  Args:
    answers: whether it answers questions, and so holds keys and values.

  Returns:
    What gives their values, by the names of `api.load`, once parsed. It joins
    the other processes if the environment names some, which then take all
    devices; all but process 0 print nothing from then on.
  """
  axes = {
    name: flags.DEFINE_integer(f"parallel.{name}", None, what)
    for name, what in (
      ("data", "devices for rows; default: all that the others leave"),
      ("fsdp", "devices that a weight's width is sharded over"),
      ("tensor", "devices that heads and hidden units are sharded over"),
      ("sequence", "devices that slots are sharded over"),
    )
  }
  dtype = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "of the weights; default: as stored"
  )
  cache_bytes = None
  if answers:
    cache_bytes = flags.DEFINE_integer(
      "cache_bytes",
      None,
      "that keys and values may take on a device; default: a share of it",
      1,
    )

  def placement() -> dict[str, Any]:
    processes.initialize(trains=False)
    if not processes.is_first():
      sys.stdout = open(os.devnull, "w", encoding="utf-8")
    given = {name: flag.value for name, flag in axes.items()}
    given = {name: size for name, size in given.items() if size is not None}
    parallel = given if given or processes.count() > 1 else None
    out = dict(parallel=parallel, dtype=dtype.value)
    if cache_bytes is not None:
      out["cache_bytes"] = cache_bytes.value
    return out

  return placement


@contextlib.contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
  """Within it the first Ctrl-C calls `stop`; a second one interrupts."""

  def handle(number, frame):
    del number, frame
    signal.signal(signal.SIGINT, before)
    stop()

  before = signal.signal(signal.SIGINT, handle)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def _define_config(argv: list[str]) -> list[str]:
  """Loads the file, lays it over the defaults, and defines the overrides."""
  files = [a for a in argv[1:] if a.startswith(_PREFIX)]
  if len(files) != 1:
    if any(a.startswith("--help") for a in argv[1:]):
      return argv
    raise errors.GazeError(
      "needs one --config=FILE, such as --config=configs/emoji_tiny.py"
    )
  merged = config_lib.to_dict(_load(files[0][len(_PREFIX) :]))
  for arg in argv:
    name, _, source = arg.lstrip("-").partition("=")
    if name == "config.data.source" and source != merged["data"]["source"]:
      # With other options, which may be overridden too.
      options = plugins.source(source).options()
      merged["data"]["options"] = dataclasses.asdict(options)
  known = _paths(merged)
  for arg in argv[1:]:
    name = arg.split("=")[0].removeprefix("-").removeprefix("-")
    if not arg.startswith("-") or not name.startswith("config."):
      continue
    if (key := name.removeprefix("config.")) not in known:
      fields.refuse_unknown(key, known)
  rest = [a for a in argv if a not in files]
  config_flags.DEFINE_config_dict(
    "config", config_dict.ConfigDict(merged), sys_argv=rest
  )
  return rest


def _load(name: str) -> config_lib.Config:
  """A config file: one of configs/, or the JSON of a run or converted model.

  FILE.py:NAME is one of several that a file has: those of its `names()`.
  """
  file, colon, argument = name.partition(".py:")
  path = pathlib.Path(f"{file}.py" if colon else name)
  if path.suffix == ".json" and path.is_file():
    return _load_json(path)
  module = _module(path)
  known = module.names() if hasattr(module, "names") else {}
  if argument not in (known or {""}):
    raise errors.GazeError(
      f"{name}: "
      + (
        f"name one of its recipes, --config={path}:NAME; known:"
        f" {', '.join(known)}"
        if known
        else "it has one config, which needs no name"
      )
    )
  try:
    raw = module.get_config(argument) if argument else module.get_config()
  except Exception as error:
    raise errors.GazeError(
      f"{path}: not a config file: {type(error).__name__}: {error}"
    ) from error
  return config_lib.parse(raw)


def _module(path: pathlib.Path) -> Any:
  if not path.is_file():
    raise errors.GazeError(f"{path}: there is no such config file")
  spec = importlib.util.spec_from_file_location("_config", path)
  module = importlib.util.module_from_spec(spec)
  sys.path.insert(0, str(path.parent.absolute()))  # a variant imports its base
  try:
    spec.loader.exec_module(module)
  except Exception as error:
    raise errors.GazeError(
      f"{path}: not a config file: {type(error).__name__}: {error}"
    ) from error
  finally:
    del sys.path[0]
  return module


def _load_json(path: pathlib.Path) -> config_lib.Config:
  raw = json_file.read(path, errors.GazeError)
  if "config" in raw:  # gaze.json holds more
    schema.read(raw, path, "model")
    return config_lib.of_saved(raw["config"])
  schema.read(raw, path, "run")
  return config_lib.of_saved({k: v for k, v in raw.items() if k != schema.KEY})


def _paths(table: dict, path: str = "") -> set[str]:
  out = set()
  for key, value in table.items():
    name = f"{path}{key}"
    out |= _paths(value, f"{name}.") if isinstance(value, dict) else {name}
  return out


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; absl's own way would print three lines."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise errors.GazeError(" ".join(str(error).split())) from None


def _run(
  function: Callable[..., int | None],
  rest: list[str],
  command: bool,
  leave: Callable[[str | int], NoReturn],
) -> int | None:
  if len(rest) > 1 and not command:
    raise errors.GazeError(
      f"unexpected argument {rest[1]!r}; flags start with --"
    )
  if not ("verbosity" in flags.FLAGS and flags.FLAGS["verbosity"].present):
    logging.set_verbosity(logging.WARNING)  # orbax logs each phase of a save
  # ... and the tracebacks of all its tasks when one fails; it is raised too.
  logging.get_absl_logger().addFilter(
    lambda record: "orbax" not in pathlib.Path(record.pathname).parts
  )
  py_logging.getLogger("asyncio").setLevel(py_logging.CRITICAL)
  sys.unraisablehook = _unraisable
  # ... or are never begun.
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")
  try:
    with _bounded_interrupt():
      return function(rest[1:]) if command else function()
  except OSError as error:
    what = f"{error.filename or 'the disk'}: {error.strerror or error}"
    leave(f"error: {what}")
  except KeyboardInterrupt:
    _say_interrupted()
    code = 128 + signal.SIGINT
    _later(10, lambda: os._exit(code))  # threads may hold exit up
    leave(code)


@contextlib.contextmanager
def _bounded_interrupt() -> Iterator[None]:
  """Within it a Ctrl-C ends the process, however long what it unwinds takes.

  What unwinds waits for saves that are being written, and for threads.
  """
  late = []

  def end():
    _say_interrupted()
    os._exit(128 + signal.SIGINT)

  def handle(number, frame):
    late.append(_later(_UNWIND_SECONDS, end))
    signal.default_int_handler(number, frame)

  before = signal.getsignal(signal.SIGINT)
  if before is signal.default_int_handler:
    signal.signal(signal.SIGINT, handle)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
    for timer in late:
      timer.cancel()


def _later(seconds: float, function: Callable[[], None]) -> threading.Timer:
  timer = threading.Timer(seconds, function)
  timer.daemon = True
  timer.start()
  return timer


def _say_interrupted() -> None:
  sys.stderr.write("interrupted\n")
  sys.stderr.flush()


def _unraisable(what) -> None:
  """After a failed write, tensorstore's other writes find no event loop."""
  if str(what.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(what)
