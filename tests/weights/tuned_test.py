"""A LLaVA of transformers, tuned as it is, goes back to transformers."""

import dataclasses
import json
import pathlib
import shutil

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
import torch

from gaze_jax import config as config_lib
from gaze_jax.api import directory
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.evals import run
from gaze_jax.train import loop
from gaze_jax.weights import exporting
from gaze_jax.weights import hf
from gaze_jax.weights import store
from gaze_jax.weights import verify

pytestmark = pytest.mark.nightly  # a run of two steps, compiled: 20 s


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
  """A directory of transformers, with the vocabulary of our own tokenizer."""
  torch.manual_seed(0)
  tower = checkpoints.TOWER | dict(
    model_type="clip_vision_model", image_size=70, patch_size=14
  )
  config = checkpoints.llava_config(
    2048, vision_config=tower, image_token_index=2047
  )
  path = tmp_path_factory.mktemp("llava")
  checkpoints.llava(config).save_pretrained(path)
  shutil.copyfile(tokenizer_lib.SHIPPED, path / "tokenizer.json")
  return path


@pytest.fixture(scope="module")
def tuned(llava, tiny_config, tmp_path_factory):
  """The workdir of a run that starts from it, frozen tower and all."""
  folder = tmp_path_factory.mktemp("tuned")
  checkpoints.to_ours(llava, folder / "ours")
  model = store.open_stored(folder / "ours").config.model
  assert model.gaze.context_tokens == 0
  vision = dataclasses.replace(model.vision, frozen=True)
  config = tiny_config(
    train__init_from=str(folder / "ours"),
    train__steps=2,
    data__tokenizer=str(folder / "ours" / "hf" / "tokenizer.json"),
  )
  config = dataclasses.replace(
    config, model=dataclasses.replace(model, vision=vision)
  )
  config = config_lib.from_config_dict(config_lib.to_dict(config))
  loop.train(config, folder / "run")
  return folder / "run"


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  return safetensors.numpy.load_file(path / "model.safetensors")


def test_a_tuned_model_goes_back(llava, tuned, tmp_path):
  run = directory.open_directory(tuned)
  exporting.write(run, tmp_path / "direct")
  store.save(run, tmp_path / "ours")
  exporting.write(store.open_stored(tmp_path / "ours"), tmp_path / "twice")
  before, after = tensors(llava), tensors(tmp_path / "direct")
  assert {k: v.shape for k, v in after.items()} == {
    k: v.shape for k, v in before.items()
  }
  moved = {k for k, v in after.items() if not np.array_equal(v, before[k])}
  assert moved and not any("vision_tower" in name for name in moved)
  again = tensors(tmp_path / "twice")
  for name, value in after.items():
    np.testing.assert_array_equal(again[name], value, name)
  read = lambda path: json.loads((path / "config.json").read_text())
  assert read(tmp_path / "direct") == read(llava)
  assert not (tmp_path / "direct" / hf.GAZE_FILE).exists()
  # transformers loads it, and computes what the run does.
  for compared in verify.verify(*directory.load(tuned), tmp_path / "direct"):
    assert compared.error <= 1e-5 * compared.scale, compared


def test_it_is_evaluated(tuned):
  report = run.evaluate(tuned)
  accuracy = report["accuracy"]
  assert accuracy["gaze"] == accuracy["dense"]
  assert accuracy["gaze"]["visual_kv_fraction"] == 1.0
