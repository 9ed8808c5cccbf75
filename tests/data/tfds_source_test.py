"""tfds: data that tensorflow-datasets prepared, as a source."""

import io
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.data import tfds_source

COUNT = 10


def picture(i):
  out = io.BytesIO()
  Image.new("RGB", (20 + i, 30), (10 * i, 0, 0)).save(out, "PNG")
  out.seek(0)
  return out


class Colours(tfds.core.GeneratorBasedBuilder):
  """Questions about colours."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    of = tfds.features
    features = of.FeaturesDict(
      dict(
        id=of.Text(),
        image=of.Image(),
        pair=of.Sequence(of.Image()),
        question=of.Text(),
        answers=of.Sequence(of.Text()),
        label=of.ClassLabel(names=["dark", "light"]),
        talk=of.Sequence(dict(q=of.Text(), a=of.Text())),
        size=np.int64,
      )
    )
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, _):
    return dict(train=self._generate_examples(COUNT), test=self._some())

  def _some(self):
    return ((i, one) for i, one in self._generate_examples(3))

  def _generate_examples(self, count):
    for i in range(count):
      yield (
        i,
        dict(
          id=f"n{i}",
          image=picture(i),
          pair=[picture(i), picture(i + 1)],
          question=f"What is number {i}?",
          answers=["red", f"colour {i}", "red"],
          label=i % 2,
          talk=[
            dict(q="One?", a="1"),
            dict(q="Two?", a="2"),
          ],
          size=i,
        ),
      )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  builder = Colours(data_dir=path, file_format="array_record")
  builder.download_and_prepare()
  return path


def config(folder, name="colours", **options):
  options = dict(name=name, answer="answers", id="id") | options
  return config_lib.from_config_dict(
    dict(
      model=dict(vision=dict(image_size=28, patch_size=14)),
      data=dict(
        source="tfds",
        path=str(folder),
        options=options,
        sequence_length=300,
        max_units=2,
        max_skipped=0.5,
      ),
    )
  )


def make(folder, **options):
  return tfds_source.SOURCE.make(config(folder, **options), "train")


def number(sample):
  return sample.images[0].shape[1] - 20


def test_samples(folder):
  source = make(folder)
  seen = [source.sample(i) for i in range(len(source))]
  assert sorted(map(number, seen)) == list(range(COUNT))
  for sample in seen:
    i = number(sample)
    assert sample.images[0][0, 0].tolist() == [10 * i, 0, 0]
    asked = f"<image>What is number {i}?"
    assert sample.conversation == (samples.Turn(asked, "red"),)
  assert "tensorflow" not in sys.modules
  c = config(folder)
  batch = pipeline.Batcher(c, source).batch([(0, 0)], rows=1).batch
  assert (batch.layout.unit[0] == 0).any()


def test_labels_turns_and_several_images(folder):
  by_label = make(folder, answer="label")
  for i in range(COUNT):
    sample = by_label.sample(i)
    (turn,) = sample.conversation
    assert turn.answer == ("dark", "light")[number(sample) % 2]
  several = make(
    folder, image="pair", question="talk/q", answer="talk/a"
  ).sample(0)
  assert len(several.images) == 2
  assert several.conversation == (
    samples.Turn("<image><image>One?", "1"),
    samples.Turn("Two?", "2"),
  )
  text = make(folder, image="").sample(0)
  assert text.images == () and "<image>" not in text.conversation[0].question


def test_parts_of_splits(folder):
  first = make(folder)
  whole = [first.sample(i).conversation for i in range(COUNT)]
  for split, wanted in (
    ("train[:40%]", whole[:4]),
    ("train[7:]", whole[7:]),
  ):
    c = config(folder, split=split)
    part = tfds_source.SOURCE.make(c, "train")
    got = [part.sample(i).conversation for i in range(len(part))]
    assert got == wanted
    assert part.content() != first.content()
  c = config(folder, eval_split="test")
  assert len(tfds_source.SOURCE.make(c, "new")) == 3
  assert tfds_source.SOURCE.splits(c) == {"new": c}


@pytest.mark.parametrize(
  "options, says",
  [
    (dict(image="picture"), "no feature 'picture' .*data.options.image.*there"),
    (dict(question="size"), "'size' .* is of kind .*Text is needed"),
    (dict(answer="image"), "is of kind Image, and Text is needed"),
    (dict(answer="talk/none"), "no feature 'talk/none'"),
    (dict(split="none"), "Unknown split 'none'"),
    (dict(name="none"), "no data set, no dataset_info.json"),
  ],
)
def test_what_is_not_there_is_named(folder, options, says):
  with pytest.raises(samples.DataError, match=says):
    make(folder, **options)


def test_questions_without_answers_are_skipped(folder):
  with pytest.raises(samples.DataError, match="2 questions for 3 answers"):
    make(folder, question="talk/q").sample(0)


def test_several_data_sets_and_none(folder, tmp_path):
  with pytest.raises(samples.DataError, match="no such folder"):
    make(tmp_path / "none")
  for version in ("1.0.0", "1.1.0"):
    (tmp_path / "a" / version).mkdir(parents=True)
    (tmp_path / "a" / version / "dataset_info.json").write_text("{}")
  with pytest.raises(samples.DataError, match="several data sets .a/1.0.0, a"):
    make(tmp_path, name="a")
  whole = folder / "colours" / "1.0.0"
  assert len(make(whole, name="")) == COUNT


def test_tfrecord_is_refused_with_the_command(folder, tmp_path):
  whole = folder / "colours" / "1.0.0"
  for name in ("dataset_info.json", "features.json", "label.labels.txt"):
    (tmp_path / name).write_text((whole / name).read_text())
  info = json.loads((tmp_path / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  (tmp_path / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(
    samples.DataError, match="tfds build colours --file_format=array_record"
  ):
    make(tmp_path)


def test_an_image_that_is_too_large_is_skipped(folder):
  c = config(folder, eval_split="train")
  small = config_lib.from_config_dict(
    config_lib.to_dict(c)
    | dict(data=config_lib.to_dict(c)["data"] | dict(max_pixels=30 * 25))
  )
  source = tfds_source.SOURCE.make(small, "new")
  assert len(source) == 6 and source.skipped == {"image too large": 4}
  assert {number(source.sample(i)) for i in range(6)} == set(range(6))
