"""Commands in-process: flags to a config, errors to a line."""

import errno
import functools
import json
import os
import subprocess
import sys

import pytest
from absl import flags

from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import errors


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs a function as a command; returns exit code and stderr.

  With flags of its own and without what absl does once a process, so that
  many commands fit one process; launch_test.py runs the real ones.
  """
  monkeypatch.setattr(cli.memory, "keep_freed_pages", lambda: None)
  monkeypatch.setattr(
    cli.app,
    "run",
    lambda main, argv, flags_parser: cli.sys.exit(main(flags_parser(argv))),
  )

  def run(function, *argv, config=False):
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    monkeypatch.setattr(cli.sys, "argv", ["command", *argv])
    if config:
      define = cli.config_flags.DEFINE_config_dict
      monkeypatch.setattr(
        cli.config_flags,
        "DEFINE_config_dict",
        lambda *a, **k: define(*a, flag_values=own, **k),
      )
    try:
      cli.main(function, config=config)
    except SystemExit as stop:
      if isinstance(stop.code, str):
        return 1, stop.code
      return stop.code or 0, capsys.readouterr().err
    raise AssertionError("a command ends by SystemExit")

  return run


def test_a_command_that_goes_well(command):
  ran = []
  assert command(lambda: ran.append(1)) == (0, "")
  assert ran == [1]


@pytest.mark.parametrize(
  "error, says",
  [
    (errors.GazeError("mend it"), "error: mend it"),
    (config_lib.ConfigError("config: x"), "error: config: x"),
    (OSError(errno.ENOSPC, "No space left on device"), "error: the disk: No"),
    (OSError(errno.EACCES, "Permission denied", "/a"), "error: /a: Permission"),
    (OSError("odd"), "error: the disk: odd"),
  ],
)
def test_errors_become_a_line(command, error, says):
  def fail():
    raise error

  code, text = command(fail)
  assert code == 1 and text.startswith(says) and "\n" not in text


def test_a_bug_keeps_its_traceback(command):
  with pytest.raises(ZeroDivisionError):
    command(lambda: 1 // 0)


def test_an_unexpected_argument(command):
  code, text = command(lambda: None, "steps=3")
  assert code == 1 and "unexpected argument 'steps=3'" in text


def test_an_unknown_flag(command):
  code, text = command(lambda: None, "--wrkdir=x")
  assert code == 1 and "wrkdir" in text and "\n" not in text


def test_config_and_overrides(command, tiny_config_file, tiny_config):
  seen = []
  read = lambda: seen.append(cli.read_config())
  code, text = command(
    read,
    f"--config={tiny_config_file}",
    "--config.train.steps=3",
    "--config.model.gaze.region=(3, 1, 1)",
    "--config.model.gaze.context_tokens=0",
    "--config.data.path=a/b",
    config=True,
  )
  assert (code, text) == (0, "")
  expected = tiny_config(
    train__steps=3,
    model__gaze__region=(3, 1, 1),
    model__gaze__context_tokens=0,
    data__path="a/b",
  )
  assert seen == [expected]


def test_another_source_has_options_of_its_own(command, tiny_config_file):
  seen = []
  code, text = command(
    lambda: seen.append(cli.read_config()),
    f"--config={tiny_config_file}",
    "--config.data.source=tfds",
    "--config.data.options.question=q",
    config=True,
  )
  assert (code, text) == (0, "")
  (config,) = seen
  assert config.data.source == "tfds" and config.data.options.question == "q"
  assert config.data.options.answer == "answer"


@pytest.mark.parametrize(
  "argv, says",
  [
    ([], "needs one --config=FILE"),
    (
      [
        "--config={file}",
        "--config.data.source=tfds",
        "--config.data.options.curriculum=1.0",
      ],
      "unknown key 'data.options.curriculum'",
    ),
    (["--config={file}", "--config.data.source=nix"], "known: 'emoji_scenes'"),
    (["--config=missing.py"], "missing.py: there is no such config file"),
    (["--config={file}", "--config.train.step=3"], "mean 'train.steps'?"),
    (["--config={file}", "-config.train.step=3"], "mean 'train.steps'?"),
    (["--config={file}", "--config.train.steps=x"], "train.steps=x: invalid"),
    (["--config={file}", "--config.train.steps=0"], "steps = 0 is below 1"),
    (["--config={file}", "--config.model.gaze.region=3"], "2 or 3 entries"),
  ],
)
def test_config_errors(command, tiny_config_file, argv, says):
  argv = [a.format(file=tiny_config_file) for a in argv]
  code, text = command(lambda: cli.read_config(), *argv, config=True)
  assert code == 1 and says in text and "\n" not in text


@pytest.mark.parametrize(
  "body, says",
  [
    ("def get_config(:", "SyntaxError"),
    ("x = 1", "no attribute 'get_config'"),
    ("def get_config():\n  return dict(trian={})", "did you mean 'train'?"),
    ("def get_config():\n  return dict(train=dict(steps='x'))", "must be int"),
    ("import nowhere_to_be_found", "nowhere_to_be_found"),
  ],
)
def test_config_files_that_are_wrong(command, tmp_path, body, says):
  path = tmp_path / "wrong.py"
  path.write_text(body)
  code, text = command(lambda: None, f"--config={path}", config=True)
  assert code == 1 and says in text and "\n" not in text


def test_a_variant_imports_its_base(tmp_path):
  (tmp_path / "base_of_variant.py").write_text(
    "def get_config():\n  return dict(train=dict(steps=3))"
  )
  variant = tmp_path / "variant.py"
  variant.write_text("from base_of_variant import get_config")
  assert cli._load(str(variant)).train.steps == 3


def test_the_json_of_a_run_or_a_converted_model_is_a_config(tmp_path):
  config = config_lib.Config(train=config_lib.TrainConfig(steps=7))
  file = tmp_path / "config.json"
  for raw in (
    config_lib.to_dict(config),
    {"schema": 1} | config_lib.to_dict(config),
    {"config": config_lib.to_dict(config)},
    {"schema": 2, "config": config_lib.to_dict(config)},
  ):
    file.write_text(json.dumps(raw))
    assert cli._load(str(file)) == config
  for text, says in (
    ("{", "not JSON"),
    ("[1]", "an object is needed, got list"),
    ('{"schema": 4, "train": {}}', "schema 4 by a newer gaze_jax"),
    ('{"schema": 5, "config": {}}', "schema 5 by a newer gaze_jax"),
  ):
    file.write_text(text)
    with pytest.raises(errors.GazeError, match=says):
      cli._load(str(file))


def test_whole_numbers():
  own = flags.FlagValues()
  flag = flags.DEFINE_list("layers", None, "", flag_values=own)
  own(["x"])
  assert cli.whole_numbers(flag) is None
  own(["x", "--layers=0,2"])
  assert cli.whole_numbers(flag) == [0, 2]
  own(["x", "--layers=0,a"])
  with pytest.raises(errors.GazeError, match="--layers=0,a: give whole"):
    cli.whole_numbers(flag)


def test_budgets():
  own = flags.FlagValues()
  flag = flags.DEFINE_list("budgets", None, "", flag_values=own)
  own(["x"])
  assert cli.budgets(flag) is None
  own(["x", "--budgets=0,4,0.25,1.0,99"])
  got = cli.budgets(flag)
  assert got == [0, 4, 0.25, 1.0, 99]
  assert [type(b) for b in got] == [int, int, float, float, int]
  for text in ("-1", "1.5", "a", "-0.5", "", ".", "1,,2"):
    own(["x", f"--budgets={text}"])
    with pytest.raises(errors.GazeError, match=f"--budgets={text}: give K"):
      cli.budgets(flag)


def test_where_a_model_is_held(monkeypatch):
  integer, enum, joined = flags.DEFINE_integer, flags.DEFINE_enum, []
  of = monkeypatch.setattr
  of(cli.processes, "initialize", lambda **k: joined.append(k))
  of(cli.sys, "stdout", sys.stdout)

  def placement(*argv, number=0, count=1):
    own = flags.FlagValues()
    of(flags, "DEFINE_integer", functools.partial(integer, flag_values=own))
    of(flags, "DEFINE_enum", functools.partial(enum, flag_values=own))
    of(cli.processes, "count", lambda: count)
    of(cli.processes, "is_first", lambda: number == 0)
    read = cli.define_placement()
    own(["x", *argv])
    return read()

  given = placement(
    "--parallel.tensor=4", "--dtype=bfloat16", "--cache_bytes=1000"
  )
  assert given == dict(
    parallel=dict(tensor=4), dtype="bfloat16", cache_bytes=1000
  )
  free = dict(dtype=None, cache_bytes=None)
  assert placement() == dict(parallel=None, **free)
  # Several processes hold it together, and one of them prints.
  assert placement(count=2) == dict(parallel={}, **free)
  assert cli.sys.stdout.name != os.devnull
  assert placement(number=1, count=2) == dict(parallel={}, **free)
  assert cli.sys.stdout.name == os.devnull
  cli.sys.stdout.close()
  assert joined == [dict(trains=False)] * 4


STUCK = """
import signal, threading
from gaze_jax import cli
cli._UNWIND_SECONDS = 0.5

def main():
  try:
    signal.raise_signal(signal.SIGINT)
  finally:
    threading.Event().wait()

cli.main(main)
"""


def test_ctrl_c_ends_what_does_not_let_go():
  done = subprocess.run(
    [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=20
  )
  assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
  "bucket, goods, bads, says",
  [
    (
      False,
      ("out/run", "/x", "C:\\x", None),
      ("s3://bucket/x", "gs://b", "https://x.org/y"),
      "--gaze_test_False=.*: an addr",
    ),
    (
      True,
      ("out/run", "gs://b/run"),
      ("s3://b/run", "https://x.org/y", "gs:/b/run"),
      "or gs://BUCKET/DIR .* mount",
    ),
  ],
)
def test_an_address_is_no_path_but_of_a_bucket(bucket, goods, bads, says):
  name = f"gaze_test_{bucket}"
  holder = cli.define_path(name, "for this test", bucket=bucket)
  values = flags.FLAGS
  values.mark_as_parsed()
  for good in goods:
    setattr(values, name, good)
    assert holder.value == good
  for bad in bads:
    with pytest.raises(errors.GazeError, match=says):
      setattr(values, name, bad)
  setattr(values, name, None)
