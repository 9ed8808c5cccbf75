"""A stored sample: a conversation with its media as they are encoded.

A record is a `tf.train.Example`, as tensorflow-datasets writes it, so that its
readers can read ours. It is parsed here by itself: tensorflow-datasets would
decode every picture.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import message
from tensorflow_datasets.proto import tf_example_pb2

from gaze_jax.data import samples


@dataclasses.dataclass(frozen=True)
class Record:
  """A sample with encoded media, in the order of their marks.

  Attributes:
    id: its name in the data that it came from.
    sample: the conversation, without media.
    images: files of pictures.
    videos: the file of each, or the files of its frames as pictures.
  """

  id: str
  sample: samples.Sample
  images: tuple[bytes, ...] = ()
  videos: tuple[bytes | tuple[bytes, ...], ...] = ()


@functools.cache
def features() -> Any:
  """The `tfds.features.FeaturesDict` of a record.

  It is one level deep. `frame_counts` has an entry a video: how many of the
  `frames` it is, or 0 for the next of the `clips`.
  """
  of = tfds.features
  return of.FeaturesDict(
    dict(
      id=of.Text(),
      images=of.Sequence(of.Image()),
      clips=of.Sequence(of.Text()),
      frames=of.Sequence(of.Image()),
      frame_counts=of.Sequence(np.int64),
      system=of.Sequence(of.Text()),  # one, or none
      turns=of.Sequence(dict(question=of.Text(), answer=of.Text())),
    )
  )


def serialize(record: Record) -> bytes:
  """The bytes of a record; the same for equal ones, in any process."""
  sample = record.sample
  clips = [one for one in record.videos if isinstance(one, bytes)]
  taken = [() if isinstance(one, bytes) else one for one in record.videos]
  example = dict(
    id=record.id,
    images=list(record.images),
    clips=clips,
    frames=list(itertools.chain(*taken)),
    frame_counts=list(map(len, taken)),
    system=[] if sample.system is None else [sample.system],
    turns=[dataclasses.asdict(turn) for turn in sample.conversation],
  )
  data = features().serialize_example(features().encode_example(example))
  # It writes the features in an order that differs from process to process.
  parsed = tf_example_pb2.Example.FromString(data)
  return parsed.SerializeToString(deterministic=True)


def parse(data: bytes) -> Record:
  """The record that `serialize` made bytes of."""
  values = fields_of(data)
  texts = lambda name: [one.decode() for one in values[name]]
  pairs = zip(texts("turns/question"), texts("turns/answer"), strict=True)
  clips, frames = iter(values["clips"]), iter(values["frames"])
  videos = [
    tuple(next(frames) for _ in range(count)) if count else next(clips)
    for count in values["frame_counts"]
  ]
  return Record(
    texts("id")[0],
    samples.Sample(
      (),
      conversation=tuple(samples.Turn(*pair) for pair in pairs),
      system=next(iter(texts("system")), None),
    ),
    tuple(values["images"]),
    tuple(videos),
  )


def fields_of(data: bytes) -> dict[str, Any]:
  """The values of each feature of an Example, by its name; bytes or numbers.

  Raises:
    ValueError: it is no Example.
  """
  try:
    parsed = tf_example_pb2.Example.FromString(data).features.feature
  except message.DecodeError as error:
    raise ValueError(f"no tf.train.Example: {error}") from None
  out = {}
  for name, feature in parsed.items():
    kind = feature.WhichOneof("kind")
    out[name] = getattr(feature, kind).value if kind else ()
  return out
