"""llava_json: the user's own conversations about images, in LLaVA's format.

  [{"id": "1", "image": "a.jpg", "conversations": [
      {"from": "human", "value": "<image>\\nWhat is this?"},
      {"from": "gpt", "value": "A fox."}]}, ...]

`image` (one name or a list) or `images` (a list) are relative to the image
folder, and `<image>` in what the human says stands for each in turn. Neither
key: text alone. Turns alternate, the human begins. (LLaVA,
docs/Finetune_Custom_Data.md.)

A sample that can't be used is named in the log and skipped; too many of them
are an error.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from gaze_jax import config as config_lib
from gaze_jax import layout
from gaze_jax import tiling
from gaze_jax.data import images
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units

_EXAMPLES = 5  # skipped samples named in an error
_GOOD, _BAD = 1, 2  # what is known of a sample; 0: nothing yet


class _Skip(Exception):
  """A sample that can't be used."""

  def __init__(self, reason: str, detail: str):
    super().__init__(detail)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class _Record:
  """A checked entry; the sample is without its images."""

  name: str
  paths: tuple[str, ...]
  sizes: tuple[tiling.Size, ...]  # of each image, as its header says
  sample: samples.Sample


_Fits = Callable[[samples.Sample, Sequence[tiling.Size]], None]


class LlavaJson:
  """Samples of a LLaVA-format JSON file (`samples.Source`).

  All samples are checked once, headers of images included. A body that turns
  out to be broken later is replaced by the next good sample, always the same.

  Args:
    path: the JSON file.
    image_folder: what image names are relative to; none may lead out of it.
    max_skipped: share of the samples that may be skipped.
    max_pixels: larger images are skipped.
    fits: raises `layout.LayoutError` for a sample that is too long; it gets
      the sample without images, and height and width of each.

  Raises:
    samples.DataError: the file can't be read, or too much of it is skipped.
  """

  def __init__(
    self,
    path: str,
    *,
    image_folder: str,
    max_skipped: float,
    max_pixels: int,
    fits: _Fits | None = None,
  ):
    self._path, self._max_pixels = path, max_pixels
    self._max_skipped, self._fits = max_skipped, fits
    self._folder = os.path.abspath(image_folder or os.path.dirname(path) or ".")
    raw = _read(path)
    if not os.path.isdir(self._folder):
      raise samples.DataError(f"{self._folder}: no such folder of images")
    self._total = len(raw)
    self._skipped: dict[str, str] = {}  # which sample: "reason: detail"
    self._records: list[_Record] = []
    digest = hashlib.sha256()
    for number, entry in enumerate(raw):
      name = _name_of(entry, number)
      try:
        record = self._checked(name, entry)
        self._check_fits(record.sample, record.sizes)
      except _Skip as skip:
        self._skip(name, skip)
        continue
      self._records.append(record)
      stats = [os.stat(p) for p in record.paths]
      key = (entry, [(s.st_size, s.st_mtime_ns) for s in stats])
      digest.update(json.dumps(key, sort_keys=True).encode())
    self._digest = digest.hexdigest()
    self._state = bytearray(len(self._records))
    self._check_share()

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> samples.Sample:
    return self.sample(index)

  def sample(self, index: int, epoch: int = 0) -> samples.Sample:
    """The conversation with its images; the same in every epoch."""
    return self._resolve(index, pixels=True)

  def text(self, index: int, epoch: int = 0) -> samples.Sample:
    """`sample` without images; decodes them once, to know they are good."""
    return self._resolve(index, pixels=False)

  def canvas(self, index: int) -> tuple[np.ndarray, ...]:
    """The images, uint8 [h, w, 3] each; none for text alone."""
    return self.sample(index).images

  def fingerprint(self) -> str:
    """Everything that decides the images: entries, file sizes and times."""
    return (
      f"llava_json path={os.path.abspath(self._path)} folder={self._folder}"
      f" samples={len(self)} sha256={self._digest}"
      f" pillow={importlib.metadata.version('pillow')}"
    )

  @property
  def skipped(self) -> dict[str, int]:
    """How many samples were skipped so far, by reason."""
    return dict(
      collections.Counter(why.split(":")[0] for why in self._skipped.values())
    )

  def _resolve(self, index: int, *, pixels: bool) -> samples.Sample:
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} of {len(self)} samples")
    for i in range(index, index + len(self)):
      i %= len(self)
      record = self._records[i]
      if self._state[i] == _BAD:
        continue
      if self._state[i] == _GOOD and not pixels:
        return record.sample
      try:
        decoded = self._decoded(record)
      except _Skip as skip:
        self._state[i] = _BAD
        self._skip(record.name, skip)
        self._check_share()
        continue
      self._state[i] = _GOOD
      return dataclasses.replace(record.sample, images=decoded)
    raise samples.DataError(f"{self._path}: no usable sample is left")

  def _decoded(self, record: _Record) -> tuple[np.ndarray, ...]:
    try:
      out = tuple(images.decode(p, self._max_pixels) for p in record.paths)
    except images.ImageError as error:
      raise _Skip("corrupt image", str(error)) from None
    sizes = tuple(image.shape[:2] for image in out)
    if sizes != record.sizes:  # a header does not tell all
      self._check_fits(record.sample, sizes)
    return out

  def _check_fits(
    self, sample: samples.Sample, sizes: tuple[tiling.Size, ...]
  ) -> None:
    try:
      if self._fits is not None:
        self._fits(sample, sizes)
    except layout.LayoutError as error:
      raise _Skip("too long", str(error)) from None

  def _skip(self, name: str, skip: _Skip) -> None:
    self._skipped[name] = f"{skip.reason}: {skip}"
    logging.warning(
      "%s: skipped %s: %s: %s", self._path, name, skip.reason, skip
    )

  def _check_share(self) -> None:
    bad = len(self._skipped)
    if bad <= self._max_skipped * self._total and bad < self._total:
      return
    counts = ", ".join(f"{n} {why}" for why, n in self.skipped.items())
    first = "; ".join(
      f"{name}: {why}" for name, why in list(self._skipped.items())[:_EXAMPLES]
    )
    raise samples.DataError(
      f"{self._path}: {bad} of {self._total} samples can't be used ({counts}),"
      f" more than data.max_skipped = {self._max_skipped} allows; first:"
      f" {first}"
    )

  def _checked(self, name: str, entry: Any) -> _Record:
    if not isinstance(entry, dict):
      raise _Skip(
        "not an object", f"{type(entry).__name__} instead of an object"
      )
    turns = _turns(entry)
    names = _image_names(entry)
    marks = sum(t.question.count(tokenizer_lib.IMAGE) for t in turns)
    if marks != len(names):
      raise _Skip(
        "image count", f"{marks} <image> in the text for {len(names)} images"
      )
    sample = samples.Sample((), conversation=turns)
    found = [self._image(n) for n in names]
    paths, sizes = zip(*found, strict=True) if found else ((), ())
    return _Record(name, paths, sizes, sample)

  def _image(self, name: str) -> tuple[str, tiling.Size]:
    """Path of an image, and its height and width."""
    # Links inside the folder are the user's own; ".." in the JSON is not.
    path = os.path.normpath(os.path.join(self._folder, name))
    if os.path.commonpath([path, self._folder]) != self._folder:
      raise _Skip(
        "image outside the folder", f"{name} leads out of {self._folder}"
      )
    if not os.path.isfile(path):
      raise _Skip("missing image", path)
    try:
      return path, images.check(path, self._max_pixels)
    except images.ImageError as error:
      large = "the limit is" in str(error)
      raise _Skip(
        "image too large" if large else "corrupt image", str(error)
      ) from None


def from_config(config: config_lib.Config, split: str) -> LlavaJson:
  """The source of `data.path` (train) or `data.eval_path` (new)."""
  data = config.data
  paths = dict(train=data.path, new=data.eval_path)
  if split not in paths:
    raise config_lib.ConfigError(
      f"llava_json has no split {split!r}; it has train and new"
    )
  if not paths[split]:
    raise config_lib.ConfigError(
      "config: data.eval_path is empty: it names the JSON held out for"
      " evaluation"
    )
  tokenizer = tokenizer_lib.Tokenizer.load(data.tokenizer)
  shape = layout.row_shape(config)
  return LlavaJson(
    paths[split],
    image_folder=data.image_folder,
    max_skipped=data.max_skipped,
    max_pixels=data.max_pixels,
    fits=functools.partial(_check_row, tokenizer, shape, config.model),
  )


def _check_row(
  tokenizer: tokenizer_lib.Tokenizer,
  shape: layout.RowShape,
  model: config_lib.ModelConfig,
  sample: samples.Sample,
  sizes: Sequence[tiling.Size],
) -> None:
  packing.pack(sample, tokenizer, shape, units.of_sizes(sizes, model))


def _read(path: str) -> list[Any]:
  try:
    raw = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except OSError as error:
    raise samples.DataError(f"can't read {path}: {error.strerror}") from None
  except ValueError as error:  # JSON or UTF-8
    raise samples.DataError(f"{path} is not JSON: {error}") from None
  if not isinstance(raw, list):
    raise samples.DataError(
      f"{path}: a list of samples is needed, got {type(raw).__name__}"
    )
  if not raw:
    raise samples.DataError(f"{path}: the list of samples is empty")
  return raw


def _name_of(entry: Any, number: int) -> str:
  given = entry.get("id") if isinstance(entry, dict) else None
  # The number keeps names apart when ids repeat.
  return f"sample {number}" + (f" (id {given})" if given is not None else "")


def _turns(entry: dict[str, Any]) -> tuple[samples.Turn, ...]:
  said = entry.get("conversations")
  if said is None:
    raise _Skip("absent key", "no conversations")
  if not isinstance(said, list) or not said or len(said) % 2:
    raise _Skip("odd turns", "conversations is not a list of pairs of turns")
  texts = []
  for i, one in enumerate(said):
    who = ("human", "gpt")[i % 2]
    if not isinstance(one, dict):
      raise _Skip("not an object", f"turn {i} is not an object")
    for key in ("from", "value"):
      if key not in one:
        raise _Skip("absent key", f"turn {i} has no {key!r}")
    if one["from"] != who:
      raise _Skip("odd turns", f"turn {i} is from {one['from']!r}, not {who!r}")
    text = one["value"]
    if not isinstance(text, str):
      raise _Skip("not a text", f"the value of turn {i} is not a text")
    if not text.replace(tokenizer_lib.IMAGE, "").strip():
      raise _Skip("empty turn", f"turn {i} says nothing")
    if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
      raise _Skip("not a text", f"turn {i} holds half a surrogate pair")
    texts.append(text)
  pairs = zip(texts[::2], texts[1::2], strict=True)
  return tuple(samples.Turn(q, a.strip()) for q, a in pairs)


def _image_names(entry: dict[str, Any]) -> list[str]:
  names = entry.get("image", entry.get("images"))
  if names is None:
    return []
  names = [names] if isinstance(names, str) else names
  if not isinstance(names, list) or not all(
    isinstance(n, str) and n for n in names
  ):
    raise _Skip("not a text", "image is neither a name nor a list of names")
  return names
