"""Checkpoints: what comes back, what stays, what is refused or passed over."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.train import checkpoint
from gaze_jax.train import compatibility
from gaze_jax.train import manifest
from gaze_jax.train import state as state_lib


def state(value=1.0):
  return state_lib.TrainState(
    step=jnp.asarray(3, jnp.int32),
    params={"layer": {"kernel": jnp.full((2, 3), value)}},
    opt_state=(jnp.asarray([1.5, 2.5]), {"count": jnp.asarray(3)}),
  )


@pytest.fixture
def saved(tmp_path):
  out = checkpoint.Writer(tmp_path, config_lib.TrainConfig(keep=2))
  yield out
  out.close()


CONFIG = config_lib.Config()
at = checkpoint.Position


def test_what_is_saved_comes_back(saved, tmp_path, capsys):
  position = checkpoint.Position(3, 2**32 - 1, [dict(loss=0.1, k=3.0)])
  saved.save(position, state(0.1), CONFIG, loss=0.1)
  back, where = saved.restore(jax.tree.map(jnp.zeros_like, state()), CONFIG)
  jax.tree.map(np.testing.assert_array_equal, back, state(0.1))
  assert where == position
  assert capsys.readouterr() == ("", "")
  # Who reads alone needs neither the optimizer nor the data's position.
  shutil.rmtree(tmp_path / "checkpoints" / "3" / "state")
  shutil.rmtree(tmp_path / "checkpoints" / "3" / "data")
  reader = checkpoint.Checkpoints(tmp_path)
  assert (reader.latest(), reader.config()) == (3, CONFIG)
  params = reader.params()
  assert isinstance(params["layer"]["kernel"], np.ndarray)
  like = jax.tree.map(jnp.zeros_like, state().params)
  for given in (params, reader.params(like)):
    jax.tree.map(np.testing.assert_array_equal, given, state(0.1).params)


def test_which_checkpoints_stay(tmp_path):
  keep = config_lib.TrainConfig(save_every=1, keep=2, keep_every=4, keep_best=1)
  names = lambda: {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
  losses = [None, 3.0, 1.0, 5.0, 4.0, 1.0, 4.0, 7.0, 9.0, 2.0]
  for start in (1, 6):  # what was lost and kept before is known afterwards
    saved = checkpoint.Writer(tmp_path, keep)
    for step in range(start, start + 4):
      assert saved.latest() == (step - 1 if step > 1 else None)
      saved.save(at(step), state(float(step)), CONFIG, loss=losses[step])
    saved.close()
    if start == 1:
      assert names() == {2, 3, 4}
      saved = checkpoint.Writer(tmp_path, keep)
      saved.save(at(5), state(), CONFIG, loss=losses[5])
      saved.close()
      assert names() == {4, 5}  # as good as 2, and newer
  assert names() == {4, 5, 8, 9}
  assert checkpoint.Checkpoints(tmp_path).params()["layer"]["kernel"][0, 0] == 9


def test_another_config_is_refused_with_the_difference(saved):
  saved.save(at(1), state(), CONFIG)
  other = dataclasses.replace(
    CONFIG,
    train=dataclasses.replace(CONFIG.train, learning_rate=0.5, seed=7),
    model=dataclasses.replace(
      CONFIG.model, gaze=config_lib.GazeConfig(region=(3, 3, 1))
    ),
  )
  with pytest.raises(checkpoint.CheckpointError) as error:
    saved.restore(state(), other)
  text = str(error.value)
  assert "train.learning_rate: 0.001 -> 0.5" in text
  assert "train.seed: 0 -> 7" in text
  assert "model.gaze.region: [6, 6, 1] -> [3, 3, 1]" in text
  assert "steps" not in text and "\n" not in text


def test_what_may_differ(saved, monkeypatch, capsys):
  saved.save(at(1), state(), CONFIG)
  new = dataclasses.replace
  other = new(
    CONFIG,
    eval=config_lib.EvalConfig(samples=1),
    data=new(CONFIG.data, workers=3),
    train=new(CONFIG.train, log_every=7, save_every=3, keep=9, keep_best=1),
    model=new(CONFIG.model, decoder=config_lib.DecoderConfig(remat="full")),
  )
  code = compatibility.code_versions() | dict(jax="0.0.1")
  monkeypatch.setattr(saved, "_code", code)
  assert saved.restore(state(), other)[1] == at(1)
  said = f"checkpoint: jax {jax.__version__} -> 0.0.1\n"
  assert capsys.readouterr().out.endswith(said)
  # Neither a section that one of them does not know yet.
  old, new = dict(train=dict(seed=1)), dict(train=dict(seed=2), parallel={})
  assert compatibility.config_differences(old, new) == ["train.seed: 1 -> 2"]


INPUTS = dict(data=dict(samples=12, texts="a"), tokenizer=dict(hash="b"))


def test_other_inputs_are_refused_by_name(tmp_path):
  saved = checkpoint.Writer(tmp_path, CONFIG.train, INPUTS)
  saved.save(at(1), state(), CONFIG)
  saved.close()
  moved = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, tokenizer="elsewhere.json")
  )
  for name, value in dict(data=dict(samples=13), tokenizer={}).items():
    other = INPUTS | {name: INPUTS[name] | dict(hash="c", texts="c") | value}
    later = checkpoint.Writer(tmp_path, CONFIG.train, other)
    with pytest.raises(checkpoint.CheckpointError) as error:
      later.restore(state(), moved)
    later.close()
    text = str(error.value)
    field = dict(data="data.path = ''", tokenizer="= 'elsewhere.json'")[name]
    assert field in text and " -> " in text and "\n" not in text
    assert "Put them back as they were or" in text
  later = checkpoint.Writer(tmp_path, CONFIG.train, INPUTS)
  assert later.restore(state(), moved)[1] == at(1)
  later.close()
  reader = checkpoint.Checkpoints(tmp_path)
  reader.check_inputs(dict(tokenizer=dict(hash="b")), CONFIG)
  with pytest.raises(checkpoint.CheckpointError, match="data.tokenizer"):
    reader.check_inputs(dict(tokenizer=dict(hash="c")), CONFIG)


def test_checkpoints_of_before_there_were_inputs(tmp_path, monkeypatch):
  real = checkpoint.ocp.args.JsonSave

  def older(said):
    said = {k: v for k, v in said.items() if k != "inputs"}
    return real(said | (dict(samples=12) if "next_batch" in said else {}))

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.ocp.args, "JsonSave", older)
    saved = checkpoint.Writer(tmp_path, CONFIG.train)
    saved.save(at(1), state(), CONFIG)
    saved.close()
  moved = dataclasses.replace(
    CONFIG, data=dataclasses.replace(CONFIG.data, tokenizer="elsewhere.json")
  )
  for inputs, config, says in (
    (INPUTS, CONFIG, ""),
    (INPUTS, moved, "data.tokenizer: '' -> 'elsewhere.json'"),
    (dict(data=dict(samples=13)), CONFIG, "12 samples, .* -> 13 samples"),
  ):
    later = checkpoint.Writer(tmp_path, CONFIG.train, inputs)
    if says:
      with pytest.raises(checkpoint.CheckpointError, match=says):
        later.restore(state(), config)
    else:
      assert later.restore(state(), config)[1] == at(1)
    later.close()
  checkpoint.Checkpoints(tmp_path).check_inputs(INPUTS, CONFIG)


def test_a_state_of_another_shape_is_refused_before_it_is_read(saved, tmp_path):
  saved.save(at(1), state(), CONFIG)
  other = dataclasses.replace(
    state(), params={"layer": {"kernel": jnp.zeros((2, 4))}}
  )
  with pytest.raises(checkpoint.CheckpointError) as error:
    saved.restore(other, CONFIG)
  assert "params.layer.kernel: [2, 3] -> [2, 4]" in str(error.value)
  assert "opt_state" not in str(error.value)
  # By a process that has saved nothing, too.
  saved.latest()
  later = checkpoint.Writer(tmp_path, CONFIG.train)
  with pytest.raises(checkpoint.CheckpointError, match="kernel"):
    later.restore(other, CONFIG)
  assert later.restore(state(), CONFIG)[1] == at(1)
  later.close()


def test_no_checkpoints_here(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match="train first"):
    checkpoint.Checkpoints(tmp_path)
  assert not list(tmp_path.iterdir())


def test_no_finished_checkpoint_yet(saved):
  with pytest.raises(checkpoint.CheckpointError, match="no finished"):
    saved.config()


@pytest.mark.parametrize(
  "error, says",
  [
    (OSError(errno.EROFS, "Read-only file system", "/x"), "Read-only file"),
    (
      ValueError(
        "RESOURCE_EXHAUSTED: Error writing 'a.b' in OCDBT database at local"
        ' file "/x/": Failed writing: "/x/d/1": Failed to write 9 bytes to file'
        " 9: No space left on device [os_error_code='28']"
      ),
      "checkpoint: No space left on device",
    ),
    (ValueError("two\nlines"), "two lines"),
    (RuntimeError(), "RuntimeError"),
  ],
)
def test_errors_of_its_threads_become_one_line(saved, monkeypatch, error, says):
  def fail():
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(saved._manager, "wait_until_finished", fail)
    with pytest.raises(checkpoint.CheckpointError) as caught:
      saved.latest()
  assert says in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_dropped_for_a_checkpoint_that_could_not_be_sealed(
  tmp_path, monkeypatch
):
  saved = checkpoint.Writer(tmp_path, config_lib.TrainConfig(keep=1))
  saved.save(at(1), state(), CONFIG)
  assert saved.latest() == 1

  def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(manifest, "write", full)
    saved.save(at(2), state(), CONFIG)
    with pytest.raises(checkpoint.CheckpointError, match="No space left"):
      saved.close()
  folder = tmp_path / "checkpoints"
  torn = "2.orbax-checkpoint-tmp"
  assert {p.name for p in folder.iterdir()} == {"1", torn}
  assert checkpoint.Checkpoints(tmp_path).latest() == 1
  saved = checkpoint.Writer(tmp_path, config_lib.TrainConfig(keep=1))
  assert saved.restore(state(), CONFIG)[1] == at(1)
  saved.save(at(3), state(), CONFIG)
  saved.close()
  assert {p.name for p in folder.iterdir()} == {"3"}


def files(folder):
  return {
    p.relative_to(folder).as_posix(): p.read_bytes()
    for p in sorted(folder.rglob("*"))
    if p.is_file()
  }


def flip(file, at):
  content = bytearray(file.read_bytes())
  content[at] ^= 0x10
  file.write_bytes(content)


DAMAGES = {
  "is missing": pathlib.Path.unlink,
  "bytes instead of": lambda file: os.truncate(file, file.stat().st_size // 2),
  "another checksum": lambda file: flip(file, file.stat().st_size // 2),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """Checkpoints of steps 1 and 2."""
  workdir = tmp_path_factory.mktemp("two")
  saved = checkpoint.Writer(workdir, config_lib.TrainConfig(keep=9))
  saved.save(at(1), state(1.0), CONFIG)
  saved.save(at(2), state(2.0), CONFIG)
  saved.close()
  return workdir


@pytest.mark.nightly
def test_damage_to_any_file_is_seen(two, tmp_path, capsys):
  whole = files(two / "checkpoints" / "2")
  assert len(whole) > 15
  for number, (name, _) in enumerate(whole.items()):
    part = name.split("/")[0]
    for kind, (says, damage) in enumerate(DAMAGES.items()):
      workdir = tmp_path / f"{number}-{kind}"
      shutil.copytree(two, workdir)
      folder = workdir / "checkpoints" / "2"
      damage(folder / name)
      # What orbax adds to a whole checkpoint is not read by anybody.
      seen = name == manifest.NAME or "/" in name
      reader = checkpoint.Checkpoints(workdir)
      read = 1 if seen and part not in ("state", "data") else 2
      assert reader.latest() == read, name
      assert reader.params()["layer"]["kernel"][0, 0] == float(read)
      err = capsys.readouterr().err
      assert err.count("\n") == (read == 1), name
      if read == 1:
        assert str(folder) in err and part in err and "skipped" in err
      before = files(folder)
      saved = checkpoint.Writer(workdir, config_lib.TrainConfig(keep=1))
      back, where = saved.restore(state(), CONFIG)
      saved.close()
      assert where.next_batch == (1 if seen else 2), name
      assert back.params["layer"]["kernel"][0, 0] == where.next_batch
      assert folder.exists() != seen
      if not seen:
        continue
      err = capsys.readouterr().err
      assert "2: " in err and "set aside as 2.damaged\n" in err
      if "/" in name:
        assert f": {name} " in err and says in err
      assert files(workdir / "checkpoints" / "2.damaged") == before


def test_a_run_resumes_beside_what_is_not_its_own(two, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(two, workdir)
  folder = workdir / "checkpoints"
  for name in ("3", "2.damaged", "50.orbax-checkpoint-tmp", "notes", "012"):
    (folder / name).mkdir()
  (folder / "3" / "state").write_text("mine")
  (folder / "4").write_text("a file")
  shutil.copytree(folder / "1", folder / "5")
  os.truncate(folder / "2" / "manifest.json", 0)
  before = files(folder)
  assert checkpoint.Checkpoints(workdir).latest() == 1
  assert files(folder) == before  # who reads changes nothing
  capsys.readouterr()
  saved = checkpoint.Writer(workdir, config_lib.TrainConfig(keep=1))
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 4
  for line, name, why in (
    (lines[0], "5", "holds step 1"),
    (lines[1], "4", "not a finished checkpoint of gaze_jax"),
    (lines[2], "3", "not a finished checkpoint of gaze_jax"),
    (lines[3], "2", "manifest.json is damaged"),
  ):
    aside = f"{name}.damaged.2" if name == "2" else f"{name}.damaged"
    assert line.startswith(f"{folder / name}: "), line
    assert why in line and line.endswith(f"; set aside as {aside}"), line
  for step in (2, 3, 4, 5, 6):
    saved.save(at(step), state(float(step)), CONFIG)
  saved.close()
  assert {p.name for p in folder.iterdir()} == {
    *("6", "2.damaged", "2.damaged.2", "3.damaged", "4.damaged", "5.damaged"),
    *("notes", "012"),
  }
  assert (folder / "3.damaged" / "state").read_text() == "mine"
  assert files(folder / "5.damaged") == files(two / "checkpoints" / "1")


def test_no_checkpoint_is_whole(two, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(two, workdir)
  folder = workdir / "checkpoints"
  flip(folder / "1" / "meta" / "metadata", 5)
  shutil.rmtree(folder / "2" / "params")
  before = files(folder)
  for make in (
    lambda: checkpoint.Checkpoints(workdir).config(),
    lambda: checkpoint.Writer(workdir, CONFIG.train),
  ):
    with pytest.raises(checkpoint.CheckpointError) as error:
      make()
    text = str(error.value)
    assert "2: params/" in text and "is missing" in text
    assert "1: meta/metadata has another checksum" in text
    assert "\n" not in text
  assert files(folder) == before


def rewrite(folder, **changes):
  """Gives a step's manifest other values, sound; `...` takes a key away."""
  file = folder / manifest.NAME
  raw = json.loads(file.read_text().splitlines()[0]) | changes
  text = json.dumps({k: v for k, v in raw.items() if v is not ...})
  file.write_text(f"{text}\n{zlib.crc32(text.encode()):08x}\n")


def test_a_checkpoint_from_before_there_were_schemas_is_read(two, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(two, workdir)
  rewrite(workdir / "checkpoints" / "2", schema=..., format=1)
  assert checkpoint.Checkpoints(workdir).latest() == 2


def test_a_newer_schema_is_refused_and_nothing_is_set_aside(two, tmp_path):
  """It is no damage: a run that went on beside it would lose what is there."""
  workdir = tmp_path / "run"
  shutil.copytree(two, workdir)
  folder = workdir / "checkpoints"
  rewrite(folder / "2", schema=99)
  before = files(folder)
  for make in (
    lambda: checkpoint.Checkpoints(workdir).config(),
    lambda: checkpoint.Writer(workdir, CONFIG.train),
  ):
    with pytest.raises(checkpoint.CheckpointError, match="by a newer gaze_jax"):
      make()
  assert files(folder) == before
  rewrite(folder / "1", schema=99)
  shutil.rmtree(folder / "2")
  with pytest.raises(checkpoint.CheckpointError, match="step 1: .* schema 99"):
    checkpoint.Checkpoints(workdir).params()


MOVED = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from gaze_jax import config as config_lib
from gaze_jax.train import checkpoint, state as state_lib

what, workdir = sys.argv[1], pathlib.Path(sys.argv[2])
mesh = jax.make_mesh((jax.device_count(),), ("data",))
on = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))
numbers = np.arange(64, dtype=np.float32).reshape(8, 8)
values = state_lib.TrainState(
  np.int32(4), {"a": numbers, "b": -numbers[0]}, {"a": 2 * numbers}
)
where = state_lib.TrainState(
  on(), {"a": on("data"), "b": on()}, {"a": on(None, "data")}
)
saved = checkpoint.Writer(workdir, config_lib.TrainConfig())
if what == "save":
  state = jax.device_put(values, where)
  saved.save(checkpoint.Position(4), state, config_lib.Config())
else:
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    values, where,
  )
  state = saved.restore(like, config_lib.Config())[0]
  reader = checkpoint.Checkpoints(workdir)
  state.params["again"] = reader.params(like.params)["a"]
  values.params["again"], where.params["again"] = numbers, on("data")
  state.params["host"] = reader.params()["a"]
  values.params["host"] = numbers
  jax.tree.map(np.testing.assert_array_equal, state, values)
  del state.params["host"]
  jax.tree.map(lambda x, s: print(x.sharding == s), state, where)
saved.close()
"""


@pytest.mark.nightly
def test_it_moves_to_other_devices(tmp_path):
  for what, devices in (("save", 8), ("restore", 2), ("restore", 1)):
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
      [sys.executable, "-c", MOVED, what, str(tmp_path)],
      env=os.environ | dict(XLA_FLAGS=flags),
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if what == "save" else "True\n" * 5)
