"""Directories of weights that load, and which tokenizer goes with them."""

import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.demo import packages
from gaze_jax.weights import errors as weights_errors
from gaze_jax.weights import load
from gaze_jax.weights import store


def config(tokenizer=""):
  return config_lib.from_config_dict(dict(data=dict(tokenizer=tokenizer)))


def named(tokenizer, folder, foreign):
  return load._with_tokenizer(config(tokenizer), folder, foreign).data


def test_the_tokenizer_beside_the_weights(tmp_path):
  file = tmp_path / "tokenizer.json"
  # Weights of others without one: the file is missed, and ours not taken.
  absent = named("", tmp_path, True).tokenizer
  assert absent == str(file)
  with pytest.raises(samples.DataError, match="no such tokenizer; copy the"):
    tokenizer_lib.Tokenizer.load(absent)
  assert named("", tmp_path, False).tokenizer == ""  # ours
  assert named("mine.json", tmp_path, True).tokenizer == "mine.json"
  shutil.copyfile(tokenizer_lib.SHIPPED, file)
  for given in ("", "mine.json"):  # a conversion has copied it
    assert named(given, tmp_path, False).tokenizer == str(file)
  smollm2 = packages.SMOLLM2
  assert named(smollm2, tmp_path, False).tokenizer == smollm2


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_what_makes_a_tokenizer_json_is_said(name, tmp_path):
  (tmp_path / name).touch()
  with pytest.raises(samples.DataError) as caught:
    tokenizer_lib.Tokenizer.load(str(tmp_path / "tokenizer.json"))
  message = str(caught.value)
  assert f"(but {name}, of which transformers makes one)" in message
  assert f"AutoTokenizer.from_pretrained('{tmp_path}')" in message
  assert "\n" not in message


def test_what_is_no_directory_is_told_with_the_remedy(tmp_path):
  with pytest.raises(
    errors.GazeError, match="no such directory.*, or download"
  ):
    load.load(pathlib.Path("Qwen/Qwen3-0.6B"))
  file = tmp_path / "model.safetensors"
  file.touch()
  with pytest.raises(errors.GazeError, match="a file; give the directory"):
    load.load(file)


@pytest.mark.parametrize("dtype", ["f4", "f2", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (3,), (5, 2, 3)])
def test_weights_that_are_no_numbers_are_refused(dtype, shape, monkeypatch):
  monkeypatch.setattr(store, "_CHECKED", 6)
  array = np.zeros(shape, dtype)
  array.flat[-1] = ml_dtypes.finfo(dtype).max
  params = dict(decoder=dict(head=array.T))
  loaded = store.load(store.from_params(params))
  np.testing.assert_array_equal(loaded["decoder"]["head"], array.T)
  for broken in (np.nan, np.inf, -np.inf):
    array.flat[-1] = broken
    with pytest.raises(
      weights_errors.ConversionError, match="decoder/head: 1 of its numbers are"
    ):
      store.load(store.from_params(params))
