"""Any file is scored: rows as long as it needs, in batches of the same size."""

import json

import numpy as np
import pytest
from PIL import Image

from gaze_jax import errors
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.evals import data_file
from gaze_jax.layout import row as row_lib


@pytest.fixture
def write(tmp_path):
  Image.new("RGB", (70, 70)).save(tmp_path / "a.png")

  def make(*talks):
    rows = []
    for talk in talks:
      marks = sum(question.count("<image>") for question, _ in talk)
      said = [
        {"from": who, "value": text}
        for pair in talk
        for who, text in zip(("human", "gpt"), pair, strict=True)
      ]
      rows.append(dict(images=["a.png"] * marks, conversations=said))
    (tmp_path / "held.json").write_text(json.dumps(rows))
    return str(tmp_path / "held.json")

  return make


TILES = dict(
  model__tiling=dict(kind="anyres", pinpoints=[[70, 140], [140, 70]]),
  data__max_units=2,
  data__sequence_length=200,
)


@pytest.mark.parametrize("changes", [{}, TILES], ids=["squares", "tiles"])
def test_rows_grow_and_batches_shrink(tiny_config, write, changes):
  config = tiny_config(
    data__source="llava_json", train__features="none", **changes
  )
  file = write(
    [("<image> a", "b")],
    [("<image> a", "word " * 40), ("<image><image> b", "c " * 200)],
  )
  got, source = data_file.load(config, file, "")
  assert len(source) == 2 and source.skipped == {}
  assert got.data.max_units == (4 if changes else 3)
  assert got.data.answer_slots > 240 > config.data.answer_slots
  slots, before = got.data.sequence_length, config.data.sequence_length
  assert slots % 64 == 0 and slots > before
  assert got.eval.batch_size == max(4 * before // slots, 1)
  for batch in pipeline.eval_batches(got, source):
    assert batch.batch.tokens.shape == (got.eval.batch_size, slots)
    assert np.isfinite(batch.batch.images).all()


def test_what_fits_already_is_left_as_it_is(tiny_config, write):
  config = tiny_config()
  got, _ = data_file.load(config, write([("<image> a", "b")]), "")
  assert got.data.sequence_length == config.data.sequence_length
  assert (got.data.max_units, got.eval) == (1, config.eval)
  assert got.data.source == "llava_json" and got.model == config.model
  assert data_file.load(config, "", "") == (config, None)


def test_rows_of_a_packed_run_shrink_to_one_sample(tiny_config, write):
  config = tiny_config(
    data__source="llava_json",
    data__packing="first_fit",
    data__pool_rows=2,
    data__pool_tiles=4,
    data__sequence_length=640,
    data__max_units=8,
    train__features="none",
  )
  got, source = data_file.load(config, write([("<image> a", "b")]), "")
  slots = got.data.sequence_length
  assert slots in (64, 128) and (got.data.max_units, got.data.packing) == (
    1,
    "none",
  )
  assert got.eval.batch_size == config.eval.batch_size * 640 // slots
  (batch,) = pipeline.eval_batches(got, source)
  assert batch.batch.images.shape[:2] == (got.eval.batch_size, 1)


def test_no_row_is_longer_than_the_longest(tiny_config, write, monkeypatch):
  monkeypatch.setattr(data_file, "_LONGEST", 128)
  config = tiny_config(data__max_skipped=0.5)
  talks = [[("a", "b")], [("a", "word " * 200)]]
  got, _ = data_file.load(config, write(*talks), "")
  assert got.data.sequence_length == config.data.sequence_length <= 128
  with pytest.raises(samples.DataError, match="too long.*128 are the most"):
    data_file.load(tiny_config(), write(*talks), "")
  with pytest.raises(errors.GazeError, match="goes with --data=FILE"):
    data_file.load(config, "", "images")


def test_rows_do_not_grow_once_a_file_is_open(tiny_config, write):
  """A sample whose images were replaced since would have no room."""
  config = tiny_config()
  talks = [[("<image> a", "b")], [("<image> a", "word " * 40)]]
  _, source = data_file.load(config, write(*talks), "")
  short, long = source.sample(0), source.sample(1)
  row = data_file._LargestRow(config)
  row.may_grow = False
  row.check(short, [(70, 70)], [])
  with pytest.raises(row_lib.LayoutError, match="smaller when it was opened"):
    row.check(long, [(70, 70)], [])
