"""llava_json: the user's own conversations about images, in LLaVA's format.

  [{"id": "1", "image": "a.jpg", "conversations": [
      {"from": "human", "value": "<image>\\nWhat is this?"},
      {"from": "gpt", "value": "A fox."}]}, ...]

`image` or `images` (a name or a list) are relative to the image folder, and
each `<image>` in a question stands for one of them, in order. Neither key: text
alone. Turns alternate, the human begins; a system turn may come first. (LLaVA,
docs/Finetune_Custom_Data.md.) OpenAI's words are known too: `messages`, `role`,
`content`, user and assistant. A file of JSON Lines has one sample a line.

A sample that can't be used is skipped and counted. The first of each kind of
reason is logged, and too many of them are an error.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.metadata
import mimetypes
import os
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from gaze_jax import config as config_lib
from gaze_jax import fingerprint
from gaze_jax import foreign
from gaze_jax import plugins
from gaze_jax.data import images
from gaze_jax.data import json_records
from gaze_jax.data import llava_record
from gaze_jax.data import packing
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles

_EXAMPLES = 5  # skipped samples named in an error
_GOOD, _BAD = 1, 2  # what is known of a sample; 0: nothing yet
_LONGEST_REASON = 1000  # characters


@dataclasses.dataclass(frozen=True)
class _Record:
  """A checked record.

  Attributes:
    name: its place in the file, and its id.
    paths: of its images.
    sizes: height and width of each, by its header.
    sample: without its images.
  """

  name: str
  paths: tuple[str, ...]
  sizes: tuple[tiles.Size, ...]
  sample: samples.Sample


_CheckFits = Callable[[samples.Sample, Sequence[tiles.Size]], None]


class LlavaJson:
  """Samples of a LLaVA-format JSON file (`samples.Source`).

  All samples are checked once, headers of images included. A sample with an
  image that turns out to be broken later is replaced by the next good sample,
  always the same.

  Args:
    path: the JSON file.
    image_folder: what image names are relative to; none may lead out of it.
    max_skipped: share of the samples that may be skipped.
    max_pixels: larger images are skipped.
    check_fits: raises `row_lib.LayoutError` for a sample that is too long; it
      gets the sample without images, and height and width of each.

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
    check_fits: _CheckFits,
  ):
    self._path, self._max_pixels = path, max_pixels
    self._max_skipped, self._check_fits = max_skipped, check_fits
    self._folder = os.path.abspath(image_folder or os.path.dirname(path) or ".")
    records = json_records.read(path)
    if not os.path.isdir(self._folder):
      raise samples.DataError(
        f"{self._folder}: no such folder of images (data.image_folder)"
      )
    self._total = len(records)
    self._skipped: dict[str, str] = {}  # name: "reason: detail"
    self._reasons: collections.Counter[str] = collections.Counter()
    self._records: list[_Record] = []
    for record in records:
      try:
        self._records.append(self._checked(record))
      except llava_record.SkipError as skip:
        self._skip(_name_of(record), skip)
    if self._skipped:
      logging.warning("%s: %s", path, self._skip_counts())
    self._check_share()
    self._state = bytearray(len(self._records))
    self._digest = _digest(self._records)

  def __len__(self) -> int:
    return len(self._records)

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
    """Everything that decides the images, whatever their names and times."""
    return (
      f"llava_json samples={len(self)} pictures={self._digest['pictures']}"
      f" pillow={importlib.metadata.version('pillow')}"
    )

  def content(self) -> dict[str, int | str]:
    """Hashes of the samples that are used: texts whole, images by file."""
    return dict(samples=len(self), **self._digest)

  @property
  def skipped(self) -> dict[str, int]:
    """How many samples were skipped so far, by reason."""
    return dict(self._reasons)

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
      except llava_record.SkipError as skip:
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
      raise llava_record.SkipError("corrupt image", str(error)) from None
    sizes = tuple(image.shape[:2] for image in out)
    if sizes != record.sizes:  # the file was changed since
      self._refuse_too_long(record.sample, sizes)
    return out

  def _refuse_too_long(
    self, sample: samples.Sample, sizes: tuple[tiles.Size, ...]
  ) -> None:
    try:
      self._check_fits(sample, sizes)
    except row_lib.LayoutError as error:
      raise llava_record.SkipError("too long", str(error)) from None
    except samples.DataError as error:
      raise llava_record.SkipError("'system' turn", str(error)) from None

  def _skip(self, name: str, skip: llava_record.SkipError) -> None:
    first = not self._reasons[skip.reason]
    self._reasons[skip.reason] += 1
    self._skipped[name] = _one_line(f"{skip.reason}: {skip}")
    log = logging.warning if first else logging.info
    log("%s: skipped %s: %s", self._path, name, self._skipped[name])

  def _skip_counts(self) -> str:
    counts = ", ".join(f"{n} {why}" for why, n in self.skipped.items())
    return (
      f"{len(self._skipped)} of {self._total} samples can't be used ({counts})"
    )

  def _check_share(self) -> None:
    bad = len(self._skipped)
    if bad <= self._max_skipped * self._total and bad < self._total:
      return
    first = "; ".join(
      f"{name}: {why}" for name, why in list(self._skipped.items())[:_EXAMPLES]
    )
    raise samples.DataError(
      f"{self._path}: {self._skip_counts()}, more than data.max_skipped ="
      f" {self._max_skipped} allows; first: {first}"
    )

  def _checked(self, record: json_records.Record) -> _Record:
    if record.error:
      raise llava_record.SkipError("not JSON", record.error)
    try:
      sample, names = llava_record.read(record.value)
    except RecursionError:
      raise llava_record.SkipError(
        "not JSON", "it is nested too deep"
      ) from None
    found = [self._image(name) for name in names]
    paths, sizes = zip(*found, strict=True) if found else ((), ())
    self._refuse_too_long(sample, sizes)
    return _Record(_name_of(record), paths, sizes, sample)

  def _image(self, name: str) -> tuple[str, tiles.Size]:
    """Path of an image, and its height and width."""
    path = self._path_of(name)
    try:
      return path, images.check(path, self._max_pixels)
    except images.TooLargeError as error:
      raise llava_record.SkipError("image too large", str(error)) from None
    except images.ImageError as error:
      reason, detail = "corrupt image", str(error)
      kind = str(mimetypes.guess_type(path)[0]).split("/")[0]
      if kind in ("video", "audio"):
        reason, detail = kind, f"{path} is named as an image"
      raise llava_record.SkipError(reason, detail) from None

  def _path_of(self, name: str) -> str:
    """The file of a name that may have been written on another system.

    macOS writes accents apart, Windows separates folders by backslashes.
    """
    other = name.replace("\\", "/")
    forms = [
      unicodedata.normalize(form, one)
      for one in (name, other)
      for form in ("NFC", "NFD")
    ]
    for one in dict.fromkeys([name, other, *forms]):
      # Links inside the folder are the user's own; ".." in the JSON is not.
      path = os.path.normpath(os.path.join(self._folder, one))
      if os.path.commonpath([path, self._folder]) != self._folder:
        raise llava_record.SkipError(
          "image outside the folder",
          f"{name} leads out of {self._folder}: set data.image_folder to a"
          " folder that holds all images",
        )
      if os.path.isfile(path):
        return path
    what = foreign.no_file(name, self._folder)
    raise llava_record.SkipError(
      "missing image",
      f"{foreign.short(name)!r} in {self._folder} (data.image_folder): {what}",
    )


def _digest(records: Sequence[_Record]) -> dict[str, str]:
  """Hashes of texts and images of the records, in order, and of both in any."""
  texts, pictures, any_order = hashlib.sha256(), hashlib.sha256(), 0
  for record in records:
    text = repr((record.sample.system, *record.sample.conversation))
    text = hashlib.sha256(text.encode()).digest()
    picture = " ".join(map(fingerprint.of_file, record.paths))
    picture = hashlib.sha256(picture.encode()).digest()
    texts.update(text)
    pictures.update(picture)
    both = hashlib.sha256(text + picture).digest()
    any_order += int.from_bytes(both[:16])
  return dict(
    texts=texts.hexdigest()[:32],
    pictures=pictures.hexdigest()[:32],
    any_order=f"{any_order % 2**128:032x}",
  )


def _make(config: config_lib.Config, split: str) -> LlavaJson:
  """The source of `data.path` (train) or `data.eval_path` (new)."""
  data = config.data
  paths = dict(train=data.path, new=data.eval_path)
  if split not in paths:
    raise config_lib.ConfigError(
      f"llava_json has no split {split!r}; it has train and new"
    )
  if not data.path and split == "train":
    raise config_lib.ConfigError(
      "config: data.source = 'llava_json' needs data.path, the JSON file"
    )
  if not paths[split]:
    raise config_lib.ConfigError(
      "config: data.eval_path is empty: it names the JSON held out for"
      " evaluation"
    )
  tokenizer = tokenizer_lib.Tokenizer.load(data.tokenizer)
  shape = row_lib.row_shape(config)
  return LlavaJson(
    paths[split],
    image_folder=data.image_folder,
    max_skipped=data.max_skipped,
    max_pixels=data.max_pixels,
    check_fits=functools.partial(_check_row, tokenizer, shape, config.model),
  )


def _check_row(
  tokenizer: tokenizer_lib.Tokenizer,
  shape: row_lib.RowShape,
  model: config_lib.ModelConfig,
  sample: samples.Sample,
  sizes: Sequence[tiles.Size],
) -> None:
  """Refuses a sample that does not fit a row of the run."""
  seen = units.of_sizes(sizes, model, packing.images_per_turn(sample))
  packing.pack(sample, tokenizer, shape, seen)


def _name_of(record: json_records.Record) -> str:
  """The place, which is unique, and the id, which may not be."""
  place, value = record.place, record.value
  given = value.get("id") if isinstance(value, dict) else None
  return place if given is None else _one_line(f"{place} (id {given})")


def _one_line(text: str) -> str:
  """A text of a file as one line that can be printed."""
  text = " ".join(text[:_LONGEST_REASON].split())
  return text.encode("utf-8", "backslashreplace").decode()


def _splits(config: config_lib.Config) -> dict[str, config_lib.Config]:
  return {"new": config} if config.data.eval_path else {}


SOURCE = plugins.SourceSpec(make=_make, splits=_splits)
