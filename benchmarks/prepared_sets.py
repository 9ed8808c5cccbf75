"""Prepared data sets for benchmarks, made in seconds."""

import dataclasses
import io
import json
import os
import pathlib
import shutil

import numpy as np
from PIL import Image

from gaze_jax.data import json_records
from gaze_jax.data import prepared
from gaze_jax.data import record_index
from gaze_jax.prepare import job
from gaze_jax.prepare import origins
from gaze_jax.prepare import shard


def jpeg(height: int, width: int, seed: int) -> bytes:
  """A JPEG of noise in blocks, as hard to decode as a photograph."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
  picture = Image.fromarray(small).resize((width, height), Image.BICUBIC)
  noise = rng.normal(0, 8, (height, width, 3))
  pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "JPEG", quality=85)
  return out.getvalue()


@dataclasses.dataclass(frozen=True)
class Questions:
  """An origin of questions, each about one of some pictures.

  Attributes:
    pictures: their files.
    texts: question and answer of each sample.
  """

  pictures: tuple[bytes, ...]
  texts: tuple[tuple[str, str], ...]

  def identity(self) -> dict[str, int]:
    """How many there are."""
    return dict(samples=len(self.texts), pictures=len(self.pictures))

  def parts(self, size: int):
    """Ranges of samples."""
    for start in range(0, len(self.texts), size):
      yield range(start, min(start + size, len(self.texts)))

  def entries(self, part: range):
    """The samples."""
    for i in part:
      question, answer = self.texts[i]
      talk = [
        {"from": "human", "value": question},
        {"from": "gpt", "value": answer},
      ]
      value = dict(id=str(i), conversations=talk)
      if "<image>" in question:
        value["image"] = str(i % len(self.pictures))
      record = json_records.Record(str(i), value)
      yield origins.Entry(record, lambda x, kind: self.pictures[int(x)])


def make(origin: origins.Origin, to: pathlib.Path, size: int = 5000) -> None:
  """Prepares it in this process."""
  job.prepare(
    origin,
    to,
    job.Plan(shard_samples=size, options=shard.Options()),
    max_skipped=0.0,
    workers=0,
  )


def repeat(one: pathlib.Path, to: pathlib.Path, times: int) -> None:
  """A set of one shard as one of so many, which are one file on disk."""
  meta = json.loads((one / prepared.META).read_text())
  (its,) = meta["shards"]
  to.mkdir()
  shards = []
  for i in range(times):
    name = f"repeated-train.array_record-{i:05d}-of-{times:05d}"
    os.link(one / its["file"], to / name)
    shards.append(its | dict(file=name))
  (to / prepared.META).write_text(json.dumps(meta | dict(shards=shards)))
  index = to / prepared.INDEX
  shutil.copytree(one / prepared.INDEX, index)
  for path in index.iterdir():
    content = path.read_bytes()
    if path.name == record_index.RECORDS:
      rows = np.frombuffer(content, record_index.RECORD)
      media, out = int(rows["media"].sum()), np.tile(rows, times)
      out["first"] += np.repeat(
        np.arange(times, dtype=np.uint64) * media, len(rows)
      )
      content = out.tobytes()
    else:
      content *= times
    path.write_bytes(content)
