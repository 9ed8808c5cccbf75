"""easy-VQA: its files as rows, and rows as prepared data."""

import json
import pathlib
import runpy

import pytest

from gaze_jax import config as config_lib
from gaze_jax.data import llava
from gaze_jax.data import samples
from gaze_jax.demo import easy_vqa
from gaze_jax.demo import packages

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "easy_vqa.py"


def test_rows_are_the_published_questions():
  train, test = (easy_vqa.rows(split) for split in easy_vqa.SPLITS)
  assert (len(train), len(test)) == (38_575, 9_673)
  first = train[0]
  assert first["conversations"] == [
    {"from": "human", "value": "<image>\nwhat is the blue shape?"},
    {"from": "gpt", "value": "rectangle"},
  ]
  assert (first["id"], first["image"]) == ("0", "0.png")
  assert len({row["image"] for row in train}) == 4000
  assert len({row["image"] for row in test}) == 1000


def test_rows_are_read_and_fit(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(CONFIG.parent)
  raw = runpy.run_path(str(CONFIG))["get_config"]()
  config = config_lib.from_config_dict(raw)
  assert config.train.batch_size % config.data.pool_rows == 0
  # With less the rows of a pool are not all filled.
  assert config.data.pool_tiles >= 8 * config.data.pool_rows
  file = tmp_path / "test.json"
  file.write_text(json.dumps(easy_vqa.rows("test")[:20]))
  data = dict(path=str(file), image_folder=str(easy_vqa.folder("test")))
  raw.data.update(data, source="llava_json")
  config = config_lib.from_config_dict(raw)
  source = llava.SOURCE.make(config, "train")
  assert len(source) == 20 and source.sample(3).images[0].shape == (64, 64, 3)


def test_without_its_package(monkeypatch):
  packages.folder.cache_clear()
  monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(samples.DataError, match="pip install --no-deps easy-vqa"):
    easy_vqa.rows("train")
