"""Several sources as one, their shares, and what a run logs and compares."""

import dataclasses
import json

import numpy as np
import pytest

from gaze_jax import config as config_lib
from gaze_jax.data import mixture
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.demo import emoji_scenes
from gaze_jax.train import compatibility
from gaze_jax.train import loop


def scenes(count=6, **entry):
  return dict(source="emoji_scenes", samples=count, questions=2) | entry


def config(*entries, tiny=None, **data):
  return config_lib.from_config_dict(
    dict(
      model=dict(vision=dict(image_size=56)),
      data=dict(source="emoji_scenes", workers=0, mixture=list(entries)) | data,
      train=dict(batch_size=4),
    )
  )


def curriculum(value):
  return dict(options=dict(curriculum=value))


def test_samples_are_those_of_their_source():
  c = config(
    scenes(5, weight=1, **curriculum(1.0)), scenes(3, weight=3), seed=4
  )
  both = mixture.training(c)
  assert len(both) == 8 and both.lengths == (5, 3)
  first, second = (
    emoji_scenes.SOURCE.make(one, "train") for one in mixture.apart(c)
  )
  for index, source, own in ((0, first, 0), (4, first, 4), (5, second, 0)):
    got, want = both.sample(index, 2), source.sample(own, 2)
    np.testing.assert_array_equal(got.images[0], want.images[0])
    np.testing.assert_array_equal(both.canvas(index)[0], want.images[0])
    assert got.questions == want.questions == both.text(index, 2).questions
  with pytest.raises(IndexError):
    both.sample(8)


def test_options_are_read_by_each_source():
  c = config(scenes(weight=1, **curriculum(0.5)), scenes(weight=1))
  options = [one.data.options.curriculum for one in mixture.apart(c)]
  assert options == [0.5, 0.0]
  assert config_lib.of_saved(json.loads(json.dumps(config_lib.to_dict(c)))) == c
  with pytest.raises(
    config_lib.ConfigError, match=r"data.mixture\[1\].options.curiculum"
  ):
    config(scenes(weight=1), scenes(weight=1, options=dict(curiculum=1.0)))


@pytest.mark.parametrize(
  "entries, shares",
  [
    ([scenes(4, weight=1), scenes(6, weight=3)], [1 / 4, 3 / 4]),
    ([scenes(4, epochs=1), scenes(6, epochs=2)], [4 / 16, 12 / 16]),
    ([scenes(4, weight=0.1), scenes(6, weight=0.2)], [1 / 3, 2 / 3]),
    ([scenes(4, weight=1), scenes(6)], [1, 0]),
  ],
)
def test_shares(entries, shares):
  got = mixture.training(config(*entries)).shares
  assert [float(x) for x in got] == shares


def test_batches_hold_the_shares_whoever_reads_them():
  c = config(scenes(7, weight=1), scenes(5, weight=3))
  with_workers = dataclasses.replace(
    c, data=dataclasses.replace(c.data, workers=2)
  )
  batches = pipeline.make_iterator(c)
  read = np.stack([next(batches)["indices"] for _ in range(6)])
  batches.close()
  assert (read < 7).sum() == 6 and {(row < 7).sum() for row in read} == {1}
  later = pipeline.make_iterator(with_workers, start_step=2, held=[1, 3])
  again = np.stack([next(later)["indices"] for _ in range(4)])
  later.close()
  np.testing.assert_array_equal(again, read[2:, [1, 3]])


@pytest.mark.parametrize(
  "entries, data, says",
  [
    ([scenes(), scenes()], {}, "weights of its sources sum to nothing"),
    ([scenes(weight=0.0)], {}, "weights of its sources sum to nothing"),
    ([scenes(weight=1), scenes(epochs=1)], {}, "a weight .* or epochs .* not"),
    ([scenes(weight=-1.0)], {}, r"mixture\[0\].weight = -1.0 is below 0"),
    ([scenes(weight=1)], dict(path="a.json"), "data.path = 'a.json' is beside"),
    ([dict(source="none", weight=1)], {}, "'none' is of no installed package"),
    ([scenes(wieght=1)], {}, r"did you mean 'data.mixture\[0\].weight'"),
  ],
)
def test_a_mixture_that_can_not_be(entries, data, says):
  with pytest.raises(config_lib.ConfigError, match=says):
    mixture.training(config(*entries, **data))


def test_two_sources_of_one_name():
  c = config(scenes(weight=1, name="a"), scenes(weight=1, name="a"))
  with pytest.raises(config_lib.ConfigError, match="two .* have one name"):
    mixture.training(c)


@pytest.mark.nightly
def test_a_run_counts_samples_by_source(tiny_config, tmp_path):
  entries = [
    scenes(8, name="plain", weight=3),
    scenes(8, name="other", weight=1),
  ]
  base = tiny_config(data__mixture=entries)
  loop.train(base, tmp_path)
  lines = [
    json.loads(line)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
  ]
  for line in lines:
    read = line["step"] * base.train.batch_size
    plain, other = line["samples/plain"], line["samples/other"]
    assert plain + other == read and abs(other - read / 4) < 1


def test_what_a_resumed_run_may_change():
  old = config(scenes(weight=1), scenes(weight=1))
  differences = lambda new: compatibility.config_differences(
    config_lib.to_dict(old), config_lib.to_dict(new)
  )
  moved = config(scenes(weight=1, path="x", name="n"), scenes(weight=1))
  assert differences(moved) == []
  other = config(scenes(weight=1), scenes(weight=2))
  assert differences(other) == ["data.mixture.weight: 1.0 -> 2.0"]
  assert len(differences(config(scenes(weight=1)))) == 1


def test_an_empty_source_is_named():
  class Empty:
    def __len__(self):
      return 0

  spec = dataclasses.replace(emoji_scenes.SOURCE, make=lambda c, s: Empty())
  c = config(scenes(weight=1))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mixture.plugins, "source", lambda name: spec)
    with pytest.raises(samples.DataError, match="emoji_scenes_0 is empty"):
      mixture.training(c)
