"""Loading: on meshes, in the dtypes on disk, and never twice in memory."""

import dataclasses
import json
import logging
import os
import pathlib
import subprocess
import sys

import checkpoints
import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from gaze_jax import api
from gaze_jax import errors
from gaze_jax.api import directory as directory_lib
from gaze_jax.models import decoder
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.train import checkpoint
from gaze_jax.train import loop
from gaze_jax.train import optimizer
from gaze_jax.train import state as state_lib
from gaze_jax.weights import store
from gaze_jax.weights import tensors

ROOT = pathlib.Path(__file__).parents[2]
WORKER = ROOT / "tests" / "api" / "on_meshes.py"
# Divisible by every mesh below.
SIZES = dict(
  model__vision__heads=4,
  model__decoder__query_heads=8,
  model__decoder__kv_heads=4,
)
MESHES = [dict(data=2, tensor=4), dict(fsdp=8)]


def save_ours(config, params, path):
  store.save(store.Stored(config, store.from_params(params)), path)


def save_run(config, workdir):
  """A run that has not taken a step."""
  workdir.mkdir()
  state = state_lib.create(config, optimizer.make(config.train))
  writer = checkpoint.Writer(workdir, config.train)
  writer.save(checkpoint.Position(), state, config)
  writer.close()
  loop._write_config(config, workdir)


@pytest.fixture(scope="module")
def directories(tiny_config, tmp_path_factory):
  """One of each kind, by name."""
  folder = tmp_path_factory.mktemp("kinds")
  config = tiny_config(**SIZES)
  init = jax.jit(mllm.init, static_argnums=0)
  params = nn.meta.unbox(init(config.model, jax.random.key(1)))
  save_ours(config, params, folder / "ours")
  text = dict(decoder=params["decoder"])
  save_ours(config, text, folder / "text")
  narrow = [
    dataclasses.replace(x, dtype=np.dtype("bfloat16"))
    for x in store.from_params(params)
  ]
  store.save(store.Stored(config, narrow), folder / "narrow")
  changed = dict(num_attention_heads=8, num_key_value_heads=4)
  llava = checkpoints.llava_config(
    264,
    text=checkpoints.TEXT | changed,
    vision_config=checkpoints.CLIP | dict(num_attention_heads=4),
  )
  model = checkpoints.drawn(checkpoints.llava, llava, 0.2)
  model.save_pretrained(folder / "llava", max_shard_size="20KB")
  checkpoints.llava_processor(264).save_pretrained(folder / "llava")
  narrow_llava = model.to(torch.bfloat16)
  narrow_llava.save_pretrained(folder / "llava_narrow", max_shard_size="9KB")
  checkpoints.llava_processor(264).save_pretrained(folder / "llava_narrow")
  save_run(config, folder / "run")
  frozen = dict(model__decoder__frozen=True, model__decoder__dtype="bfloat16")
  start = dict(train__init_from=str(folder / "ours"))
  save_run(tiny_config(**SIZES, **frozen, **start), folder / "frozen")
  return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def asked(monkeypatch):
  """Name and elements of each part of a tensor that is read."""
  parts, read = [], tensors.Tensors.read

  def counted(self, name, index=()):
    part = read(self, name, index)
    parts.append((name, part.size))
    return part

  monkeypatch.setattr(tensors.Tensors, "read", counted)
  return parts


def on_meshes(directories, meshes, *launcher, devices=8):
  asked = dict(
    directories={name: str(path) for name, path in directories.items()},
    meshes=meshes,
  )
  environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
  if not launcher:
    flag = f" --xla_force_host_platform_device_count={devices}"
    environment["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag
  done = subprocess.run(
    [*launcher, sys.executable, WORKER, json.dumps(asked)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=environment,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def check(found):
  """Bits are those of one device, and float32 logits are its too."""
  for name, got in found.items():
    assert got["wrong"] == [], name
    narrow = "narrow" in name or "frozen" in name
    assert got["embedding"][0] == ("bfloat16" if narrow else "float32"), name
    assert got["dtypes"][0] == got["embedding"][0], name
    tower = "bfloat16" if "narrow" in name else "float32"
    assert got["dtypes"][1] == tower, name
    assert got["differs"] == "", name


@pytest.mark.nightly
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_hold_what_one_does(directories, mesh):
  found = on_meshes(directories, [mesh])
  check(found)
  ways = dict(tensor=[264 // 4, 32], fsdp=[264, 32 // 8])
  kind = "tensor" if "tensor" in mesh else "fsdp"
  assert found[f"llava {mesh}"]["embedding"][1] == ways[kind]
  for name, got in found.items():
    if not name.startswith(("run", "frozen")):  # which orbax reads
      assert got["read"] == got["size"], name  # nothing twice


@pytest.mark.nightly
def test_two_processes_hold_what_one_device_does(directories):
  launcher = [sys.executable, "launch/local.py", "--processes=2", "--devices=2"]
  some = ("ours", "llava_narrow", "frozen")
  some = {name: directories[name] for name in some}
  check(on_meshes(some, [dict(fsdp=2, tensor=2)], *launcher, "--"))


def test_what_does_not_divide_is_named_before_anything_is_read(
  directories, asked, monkeypatch
):
  monkeypatch.setattr(checkpoint, "Checkpoints", None)
  # Of one device, eight times: no more than its shape is looked at.
  devices = np.array(jax.devices()[:1] * 8).reshape(1, 1, 8, 1)
  mesh = jax.sharding.Mesh(devices, mesh_lib.AXES)
  for name, directory in directories.items():
    with pytest.raises(mesh_lib.MeshError) as error:
      directory_lib.load(directory, mesh)
    message = str(error.value)
    assert "model.decoder.kv_heads = 4 can't be sharded tensor 8" in message
    assert ("model.vision.heads = 4" in message) != (name == "text")
    assert "\n" not in message and asked == []


def test_a_mesh_of_one_device_is_the_default(directories):
  model = api.load(directories["ours"])
  assert model.mesh.size == 1
  again = api.load(directories["ours"], parallel=dict(tensor=1))
  assert again.mesh == model.mesh
  for wrong, says in (
    (dict(rows=2), "unknown key 'parallel.rows'"),
    (dict(tensor=0), "parallel.tensor = 0 is below 1"),
    (dict(data=0), "parallel.data = 0 must be 1 or more"),
  ):
    with pytest.raises(errors.GazeError, match=says):
      api.load(directories["ours"], parallel=wrong)


def test_weights_keep_their_dtype_or_have_the_one_asked_for(directories):
  def kinds(name, dtype=None):
    config, params = directory_lib.load(directories[name], dtype=dtype)
    assert params["projector"]["linear_1"]["bias"].dtype == np.float32
    return (
      params["decoder"]["layers"]["query"]["weight"].dtype.name,
      params["vision"]["blocks"]["mlp"]["up"]["kernel"].dtype.name,
      config.model.decoder.dtype,
      config.model.vision.dtype,
    )

  for name in ("narrow", "llava_narrow"):
    assert kinds(name) == ("bfloat16",) * 4
  for name in ("narrow", "llava_narrow", "frozen"):
    assert kinds(name, "float32") == ("float32",) * 4
  for name in ("ours", "llava", "run", "frozen"):
    assert kinds(name, "bfloat16") == ("bfloat16",) * 4
  # As in training: the decoder narrow, the tower not.
  assert kinds("frozen") == ("bfloat16", "float32", "bfloat16", "float32")
  with pytest.raises(errors.GazeError, match="'float16': give 'float32' or"):
    api.load(directories["ours"], dtype="float16")


def test_masters_of_a_narrow_run_stay_wide(directories, tiny_config, tmp_path):
  config = tiny_config(**SIZES, model__decoder__dtype="bfloat16")
  save_run(config, tmp_path / "run")
  model = api.load(tmp_path / "run")
  assert model.config.model == config.model
  assert model.params["decoder"]["embedding"].dtype == np.float32


def test_float16_is_read_as_float32(directories, tmp_path, caplog):
  stored = store.open_stored(directories["ours"])
  half = [
    dataclasses.replace(x, dtype=np.dtype("float16")) for x in stored.leaves
  ]
  store.save(dataclasses.replace(stored, leaves=half), tmp_path / "half")
  with caplog.at_level(logging.WARNING, "absl"):
    _, got = directory_lib.load(tmp_path / "half")
  assert len(caplog.records) == 1
  assert got["decoder"]["embedding"].dtype == np.float32
  _, want = directory_lib.load(directories["ours"])
  narrowed = jax.tree.map(lambda x: x.astype("float16").astype("float32"), want)
  jax.tree.map(np.testing.assert_array_equal, got, narrowed)


def test_layers_are_apart_as_split_makes_them(directories):
  for name in ("ours", "llava_narrow", "run", "frozen"):
    _, stacked = directory_lib.load(directories[name])
    _, got = directory_lib.load(directories[name], apart=True)
    want = stacked | dict(decoder=decoder.split(stacked["decoder"]))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", ["ours", "llava"])
def test_nothing_larger_than_a_block_is_read(
  directories, name, asked, monkeypatch
):
  """Layers apart are never read together, and large leaves never whole."""
  want_config, want = directory_lib.load(directories[name], apart=True)
  asked.clear()
  c = want_config.model.decoder
  directory_lib.load(directories[name], apart=True)
  layers = [size for name, size in asked if "layers" in name]
  assert max(layers) == c.width * c.mlp_dim
  asked.clear()
  monkeypatch.setattr(store, "_BLOCK", 1000)
  _, got = directory_lib.load(directories[name], apart=True)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  # But for the patches of a tower of transformers, which are turned round.
  assert max(size for name, size in asked if "patch_embed" not in name) <= 1000
