"""A run reads words as the weights do that it starts from."""

import json
import shutil

import numpy as np
import pytest
from flax import traverse_util

from gaze_jax import errors
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.train import pretrained
from gaze_jax.weights import store
from gaze_jax.weights.families import registry


@pytest.fixture
def start(tiny_config, tmp_path):
  """Makes converted weights, with a tokenizer of their own or without."""

  def make(own=True, naming="B", parts=("decoder", "projector")):
    config = tiny_config()
    shapes = registry.shapes(config.model)
    leaves = [
      store.Leaf((part, *path), x.shape, x.dtype, lambda i, x=x: _zeros(x, i))
      for part in parts
      for path, x in traverse_util.flatten_dict(shapes[part]).items()
    ]
    folder = tmp_path / "ours"
    store.save(store.Stored(config, leaves, naming), folder)
    (folder / "hf").mkdir()
    if own:
      shutil.copyfile(tokenizer_lib.SHIPPED, folder / "hf" / "tokenizer.json")
    return folder

  return make


def _zeros(x, index):
  return np.zeros(x.shape, x.dtype)[index]


def run(tiny_config, folder, tokenizer=""):
  return tiny_config(train__init_from=str(folder), data__tokenizer=tokenizer)


def test_the_tokenizer_that_came_with_the_weights_is_asked_for(
  start, tiny_config
):
  folder = start()
  own = str(folder / "hf" / "tokenizer.json")
  pretrained.check_tokenizer(run(tiny_config, folder, own))
  with pytest.raises(errors.GazeError) as caught:
    pretrained.check_tokenizer(run(tiny_config, folder))
  assert f"set data.tokenizer = {own!r}" in str(caught.value)
  assert "the shipped tokenizer" in str(caught.value)


def test_weights_of_others_are_never_read_by_our_tokenizer(start, tiny_config):
  with pytest.raises(errors.GazeError, match="data.tokenizer is empty"):
    pretrained.check_tokenizer(run(tiny_config, start(own=False)))


@pytest.mark.parametrize(
  "made",
  [
    dict(own=False, naming=""),  # a run of ours
    dict(parts=("projector",)),  # which reads no words
  ],
)
def test_our_own_weights_are(made, start, tiny_config):
  pretrained.check_tokenizer(run(tiny_config, start(**made)))
  pretrained.check_tokenizer(tiny_config())


def test_another_tokenizer_is_told_by_its_first_other_id(
  start, tiny_config, tmp_path
):
  folder = start()
  raw = json.loads(tokenizer_lib.SHIPPED.read_text())
  other = tmp_path / "other.json"
  added = dict(raw["added_tokens"][0], content="<more>", id=2048)
  raw["added_tokens"].append(added)
  other.write_text(json.dumps(raw))
  pretrained.check_tokenizer(
    run(tiny_config, folder, str(other))
  )  # one more is no other
  vocabulary = raw["model"]["vocab"]
  vocabulary["a"], vocabulary["o"] = vocabulary["o"], vocabulary["a"]
  other.write_text(json.dumps(raw))
  with pytest.raises(errors.GazeError, match="'a' is id 84 in it, and 70 in"):
    pretrained.check_tokenizer(run(tiny_config, folder, str(other)))
