"""A LLaVA of transformers, tuned as it is, goes back to transformers."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from gaze_jax import config as config_lib
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.evals import run
from gaze_jax.evals import verify
from gaze_jax.evals import weights
from gaze_jax.train import loop
from gaze_jax.weights import hf
from gaze_jax.weights import importing
from gaze_jax.weights import store

pytestmark = pytest.mark.nightly  # a run of two steps, compiled: 20 s


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
  """A directory of transformers, with the vocabulary of our own tokenizer."""
  torch.manual_seed(0)
  tower = transformers.CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=70,
    patch_size=14,
  )
  text = transformers.LlamaConfig(
    vocab_size=2048,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  config = transformers.LlavaConfig(
    vision_config=tower, text_config=text, image_token_index=2047
  )
  path = tmp_path_factory.mktemp("llava")
  transformers.LlavaForConditionalGeneration(config).save_pretrained(path)
  shutil.copyfile(tokenizer_lib.SHIPPED, path / "tokenizer.json")
  return path


@pytest.fixture(scope="module")
def tuned(llava, tiny_config, tmp_path_factory):
  """The workdir of a run that starts from it, frozen tower and all."""
  folder = tmp_path_factory.mktemp("tuned")
  importing.to_ours(llava, folder / "ours")
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
  for name, source in (("direct", tuned), ("twice", tmp_path / "ours")):
    if source != tuned:
      weights.take_in(tuned, source)
    weights.give_out(source, tmp_path / name)
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
  for compared in verify.verify(tuned, tmp_path / "direct"):
    assert compared.error <= 1e-5 * compared.scale, compared


def test_it_is_evaluated(tuned):
  report = run.evaluate(tuned)
  accuracy = report["accuracy"]
  assert accuracy["gaze"] == accuracy["dense"]
  assert accuracy["gaze"]["visual_kv_fraction"] == 1.0
