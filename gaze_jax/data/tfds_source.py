"""tfds: data that tensorflow-datasets prepared, read without TensorFlow.

`data.path` is its directory: that of one version, or the `data_dir` that holds
`data.options.name`. Records are read as they are stored; pictures are decoded
here, under `data.max_pixels`.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from gaze_jax import config as config_lib
from gaze_jax import foreign
from gaze_jax import plugins
from gaze_jax.data import images
from gaze_jax.data import media as media_lib
from gaze_jax.data import record as record_lib
from gaze_jax.data import samples
from gaze_jax.data import shards as shards_lib
from gaze_jax.data import skipped
from gaze_jax.data import stored

_INFO = "dataset_info.json"
_AGAIN = "copy it again, or prepare it anew"
_IMAGE = "<image>"


@dataclasses.dataclass(frozen=True)
class Options:
  """`data.options` of this source.

  A feature within another is written as `turns/question`.
  """

  name: str = ""  # of the data set, with its config: "coco" or "coco/2017"
  split: str = "train"  # also a part of it: "train[:80%]"
  eval_split: str = ""  # that is evaluated; "" for none
  image: str = "image"  # feature of one image, or of several; "" for none
  # Features of a text. Several questions with as many answers are turns; of
  # several answers to one question the most frequent is learned.
  question: str = "question"
  answer: str = "answer"
  id: str = ""  # feature that names a sample in messages; "" for none


class Tfds(stored.Stored):
  """Samples of a split.

  Args:
    builder: of the data set.
    split: of it.
    options: which feature is which.
    reader: of the images.
    max_skipped: share of the samples that may be skipped.
    fits_only: as for `stored.Stored`.

  Raises:
    samples.DataError: it is not to be read so.
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    options: Options,
    *,
    reader: media_lib.Reader,
    max_skipped: float,
    fits_only: bool = False,
  ):
    self._options = options
    self._directory = str(builder.data_dir)
    self._labels = _labels(builder, options)
    self._split = _split(builder, split)
    shards = [
      shards_lib.Shard(
        one.filename, _taken(one), one.skip, one.examples_in_shard
      )
      for one in self._split.file_instructions
    ]
    super().__init__(
      f"{self._directory} [{split}]",
      shards_lib.Shards(shards, _AGAIN),
      reader=reader,
      max_skipped=max_skipped,
      fits_only=fits_only,
    )

  def record(self, content: bytes) -> record_lib.Record:
    """The sample of an Example's features."""
    fields, of = record_lib.fields_of(content), self._options
    pictures = tuple(fields[of.image]) if of.image else ()
    turns = _turns(
      [_text(one) for one in fields[of.question]],
      [self._labels[x] if isinstance(x, int) else _text(x)
       for x in fields[of.answer]],
      len(pictures),
    )  # fmt: skip
    name = str(_text(fields[of.id][0])) if of.id else ""
    sample = samples.Sample((), conversation=turns)
    return record_lib.Record(name, sample, pictures)

  def fetch(self, number: int) -> record_lib.Record:
    """A record that a row can hold, by its text and the headers of images."""
    one = self.stored(number)
    with media_lib.skipping():
      sizes = [images.check(x, self.reader.max_pixels) for x in one.images]
    self.reader.check(one.sample, sizes, [])
    return one

  def digest(self) -> str:
    """A hash of what the data set tells of the shards, and of the options."""
    told = [
      (pathlib.Path(one.filename).name, one.skip, _taken(one))
      for one in self._split.file_instructions
    ]
    own = dict(bytes=self._split.num_bytes, files=told)
    own |= dataclasses.asdict(self._options)
    return hashlib.sha256(json.dumps(own).encode()).hexdigest()[:32]


def _taken(instruction: Any) -> int:
  take, whole = instruction.take, instruction.examples_in_shard
  return take if take >= 0 else whole - instruction.skip


def _text(value: bytes | int) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _turns(
  questions: list[str], answers: list[str], pictures: int
) -> tuple[samples.Turn, ...]:
  """Turns of which the first shows the pictures, unless marks say where.

  Raises:
    skipped.SkipError: they do not go together.
  """
  if len(questions) == 1 and len(answers) > 1:
    counts = collections.Counter(a for a in answers if a.strip())
    answers = [counts.most_common(1)[0][0]] if counts else []
  if not questions or len(questions) != len(answers):
    raise skipped.SkipError(
      "odd turns", f"{len(questions)} questions for {len(answers)} answers"
    )
  marks = sum(text.count(_IMAGE) for text in questions)
  if not marks:
    questions = [_IMAGE * pictures + questions[0], *questions[1:]]
  elif marks != pictures:
    raise skipped.SkipError(
      "image count", f"{marks} {_IMAGE} in the text for {pictures} images"
    )
  if not all(answer.strip() for answer in answers):
    raise skipped.SkipError("empty turn", "an answer has no text")
  pairs = zip(questions, answers, strict=True)
  return tuple(samples.Turn(q, a.strip()) for q, a in pairs)


def _labels(builder: tfds.core.DatasetBuilder, options: Options) -> list[str]:
  """The names of the answers' classes; none where answers are texts.

  Raises:
    samples.DataError: a feature is missing, or of another kind.
  """
  where = builder.data_dir
  found, of = {}, tfds.features
  kinds = dict(
    image=(of.Image,), question=(of.Text,), answer=(of.Text, of.ClassLabel)
  )
  for field, wanted in kinds.items():
    if not (name := getattr(options, field)) and field == "image":
      continue
    feature = builder.info.features
    for part in name.split("/"):
      while isinstance(feature, of.Sequence):
        feature = feature.feature
      if not isinstance(feature, of.FeaturesDict) or part not in feature:
        raise samples.DataError(
          f"{where}: it has no feature {name!r} (data.options.{field}); there"
          f" are {', '.join(builder.info.features)}"
        )
      feature = feature[part]
    while isinstance(feature, of.Sequence):
      feature = feature.feature
    if not isinstance(feature, wanted):
      raise samples.DataError(
        f"{where}: {name!r} (data.options.{field}) is of kind"
        f" {type(feature).__name__}, and {wanted[0].__name__} is needed"
      )
    found[field] = feature
  answer = found["answer"]
  return list(answer.names) if isinstance(answer, of.ClassLabel) else []


def _split(builder: tfds.core.DatasetBuilder, split: str) -> Any:
  try:
    return builder.info.splits[split]
  except (ValueError, KeyError, AssertionError) as error:
    raise samples.DataError(
      f"{builder.data_dir}: {' '.join(str(error).split())}"
    ) from None


def _open(path: str, name: str) -> tfds.core.DatasetBuilder:
  """The data set in a directory.

  Raises:
    samples.DataError: there is none, or several, or it is not in array_record.
  """
  where = pathlib.Path(path)
  if not where.is_dir():
    what = foreign.no_file(path).replace("no such file", "no such folder")
    raise samples.DataError(f"{foreign.short(path)} (data.path): {what}")
  if not (where / _INFO).is_file():
    inside = where / name if name else where
    found = sorted(file.parent for file in inside.glob(f"**/{_INFO}"))
    if len(found) != 1:
      several = ", ".join(str(one.relative_to(where)) for one in found[:5])
      raise samples.DataError(
        f"{inside}: {f'several data sets ({several})' if found else 'no data'}"
        f"{'' if found else f' set, no {_INFO}'}; set data.path to the folder"
        " of one version, which has it"
      )
    (where,) = found
  builder = tfds.builder_from_directory(where)
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise samples.DataError(
      f"{where} is in {builder.info.file_format.value}, which needs TensorFlow"
      " and has no random access; prepare it again: tfds build"
      f" {builder.name} --file_format=array_record"
    )
  return builder


def _make(config: config_lib.Config, split: str) -> Tfds:
  """The source of a split of the data: "train", or "new" for evaluation."""
  options = config.data.options
  splits = dict(train=options.split, new=options.eval_split)
  if split not in splits:
    raise config_lib.ConfigError(
      f"tfds has no split {split!r}; it has train and new"
    )
  if not config.data.path:
    raise config_lib.ConfigError(
      "config: data.source = 'tfds' needs data.path, the directory"
    )
  if not splits[split]:
    raise config_lib.ConfigError(
      "config: data.options.eval_split is empty: it names the split that is"
      " evaluated"
    )
  return Tfds(
    _open(config.data.path, options.name),
    splits[split],
    options,
    reader=media_lib.reader(config),
    max_skipped=config.data.max_skipped,
    fits_only=split != "train",
  )


def _splits(config: config_lib.Config) -> dict[str, config_lib.Config]:
  return {"new": config} if config.data.options.eval_split else {}


SOURCE = plugins.SourceSpec(make=_make, splits=_splits, options=Options)
