"""A run that starts from converted weights, and its way back out."""

import dataclasses
import pathlib
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.api import directory as directory_lib
from gaze_jax.models import mllm
from gaze_jax.train import loop
from gaze_jax.train import optimizer
from gaze_jax.train import pretrained
from gaze_jax.train import state as state_lib
from gaze_jax.weights import store

_init = jax.jit(mllm.init, static_argnums=0)


@pytest.fixture(scope="module")
def converted(tiny_config, tmp_path_factory):
  """A directory as launch/convert.py leaves it, without context tokens."""
  config = tiny_config(model__gaze__context_tokens=0)
  params = nn.meta.unbox(_init(config.model, jax.random.key(7)))
  path = tmp_path_factory.mktemp("converted") / "ours"
  stored = store.Stored(
    config_lib.Config(model=config.model),
    store.from_params(params),
    files={"tokenizer_config.json": "{}"},
  )
  store.save(stored, path)
  return path, params


def start(tiny_config, converted, **changes):
  return tiny_config(train__init_from=str(converted[0]), **changes)


def test_a_run_starts_from_its_values_and_new_context_tokens(
  tiny_config, converted
):
  trained = dict(model__vision__frozen=False, train__features="none")
  config = start(tiny_config, converted, **trained)
  chain = optimizer.make(config.train)
  got = state_lib.create(config, chain).params
  fresh = state_lib.create(tiny_config(**trained), chain)
  want = {k: dict(v) for k, v in converted[1].items()}
  context = want["projector"]["context"] = fresh.params["projector"]["context"]
  assert context.shape == (2, 32)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_whole_squares_drop_the_newline_of_tiles(tiny_config, tmp_path):
  tiled = tiny_config(
    model__tiling__kind="anyres",
    model__tiling__pinpoints=[[70, 140]],
    data__max_units=2,
    data__sequence_length=200,
    train__features="none",
  )
  params = nn.meta.unbox(_init(tiled.model, jax.random.key(7)))
  stored = store.Stored(tiled, store.from_params(params))
  store.save(stored, tmp_path / "ours")
  for config in (tiled, tiny_config()):
    changed = dict(init_from=str(tmp_path / "ours"))
    train = dataclasses.replace(config.train, **changed)
    config = dataclasses.replace(config, train=train)
    got = state_lib.create(config, optimizer.make(train)).params["projector"]
    want = dict(params["projector"])
    if config.model.tiling.kind == "none":
      assert want.pop("newline").shape == (32,)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_frozen_parts_come_from_there(tiny_config, converted):
  config = start(tiny_config, converted, model__decoder__frozen=True)
  parts = pretrained.load_frozen(config)
  assert parts.keys() == {"vision", "decoder"}
  for name, part in parts.items():
    jax.tree.map(np.testing.assert_array_equal, part, converted[1][name])


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(model__decoder__norm_eps=1e-3), "model.decoder.norm_eps is 1e-06"),
    (dict(model__projector__hidden=9), "model.projector.hidden is"),
    (dict(train__init_from="nowhere"), "nowhere.*no such file"),
  ],
)
def test_another_model_is_refused_by_name(
  tiny_config, converted, changes, says
):
  config = tiny_config(**dict(train__init_from=str(converted[0])) | changes)
  with pytest.raises(errors.GazeError, match=says):
    state_lib.create(config, optimizer.make(config.train))


def test_cached_features_are_those_of_these_weights(
  tiny_config, converted, tmp_path
):
  config = start(tiny_config, converted)
  ours = pretrained.fingerprint(config)
  assert ours and not pretrained.fingerprint(tiny_config())
  (file,) = converted[0].glob("*.safetensors")
  shutil.copytree(converted[0], tmp_path / "moved")
  moved = start(tiny_config, (tmp_path / "moved",))
  assert pretrained.fingerprint(moved) == ours
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  (tmp_path / "moved" / file.name).write_bytes(content)
  assert pretrained.fingerprint(moved) != ours


@pytest.mark.nightly
def test_a_run_goes_out_whole(tiny_config, converted, tmp_path):
  config = start(tiny_config, converted, train__steps=1)
  loop.train(config, tmp_path / "run")
  store.save(directory_lib.open_directory(tmp_path / "run"), tmp_path / "out")
  want_config, want = directory_lib.load(tmp_path / "run")
  got_config, got = directory_lib.load(tmp_path / "out")
  assert got_config == want_config == config
  assert got.keys() == {"vision", "projector", "decoder"}
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert (tmp_path / "out" / store.SOURCE / "tokenizer_config.json").exists()


def test_what_is_not_weights_is_refused(tmp_path):
  with pytest.raises(errors.GazeError, match="neither a workdir"):
    directory_lib.load(tmp_path)
  with pytest.raises(errors.GazeError, match="no such directory"):
    directory_lib.load(pathlib.Path("nowhere"))
