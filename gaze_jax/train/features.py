"""Features of a frozen tower, computed once and read from disk after that.

The file's name is a hash of everything that decides its content (tower,
weights, preprocessing, pictures), so a stale file is never read: it is simply
not found. A file appears under its name only when it is complete.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import secrets
from typing import Any

import jax
import numpy as np
import tqdm

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import images
from gaze_jax.data import samples
from gaze_jax.models import vision
from gaze_jax.train import frozen

_VERSION = 1  # raise when the code changes what a feature is
_ROWS = 32  # images encoded at a time

_log = logging.getLogger(__name__)


class Encoder:
  """Turns uint8 pictures into features, `_ROWS` at a time.

  Args:
    config: the tower and its preprocessing.
    params: of the tower, from `frozen.tower`.
  """

  def __init__(self, config: config_lib.VisionConfig, params: dict[str, Any]):
    self._config, self._params = config, params
    self._apply = jax.jit(vision.ViT(config).apply)

  def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
    """float32 [len(pictures), T, F]."""
    out = []
    for start in range(0, len(pictures), _ROWS):
      some = pictures[start : start + _ROWS]
      pixels = np.stack([images.preprocess(p, self._config) for p in some])
      room = ((0, _ROWS - len(some)), (0, 0), (0, 0), (0, 0))
      features = self._apply({"params": self._params}, np.pad(pixels, room))
      out.append(np.asarray(features)[: len(some)])
    return np.concatenate(out)


def cached(
  config: config_lib.Config,
  source: samples.Source,
  directory: pathlib.Path,
  *,
  run: config_lib.Config | None = None,
) -> np.ndarray:
  """Features of every canvas of a source, computed if they are not on disk.

  Args:
    config: names the tower, and the dtype on disk.
    source: its `canvas` and `fingerprint` are used.
    directory: where the file is, or will be.
    run: whose tower it is, where the pictures are larger than the run's.

  Returns:
    A read-only memory map [samples, T, F], or [samples, M, T, F] where a
    sample has several pictures.

  Raises:
    errors.GazeError: a feature does not fit `features_dtype`.
  """
  path = directory / f"{_key(config, source)}.npy"
  if not path.exists():
    directory.mkdir(parents=True, exist_ok=True)
    _build(config, source, path, frozen.tower(run or config))
  return np.load(path, mmap_mode="r")


def _key(config: config_lib.Config, source: samples.Source) -> str:
  said = dict(
    version=_VERSION,
    vision=dataclasses.asdict(config.model.vision),
    units=config.data.max_units,
    seed=config.train.seed,
    dtype=config.train.features_dtype,
    source=source.fingerprint(),
    init_from=frozen.fingerprint(config),
  )
  text = json.dumps(said, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def _build(
  config: config_lib.Config,
  source: samples.Source,
  path: pathlib.Path,
  tower: dict[str, Any],
) -> None:
  c, units = config.model.vision, config.data.max_units
  encode = Encoder(c, tower)
  shape: tuple[int, ...] = (len(source), units, c.tokens, c.width)
  if units == 1:
    shape = (len(source), c.tokens, c.width)
  # Not the process id: two hosts that share the directory may have the same.
  partial = path.with_suffix(f".{secrets.token_hex(8)}.partial")
  try:
    # Written, not memory-mapped: a full disk is an error here and not a
    # SIGBUS later.
    with partial.open("wb") as file:
      np.lib.format.write_array_header_2_0(
        file,
        dict(
          descr=np.dtype(config.train.features_dtype).str,
          fortran_order=False,
          shape=shape,
        ),
      )
      chunks = range(0, len(source), _ROWS)
      for start in tqdm.tqdm(chunks, "features", unit="batch", mininterval=5):
        stop = min(start + _ROWS, len(source))
        rows = _encode(encode, source, start, stop, units, shape[1:])
        with np.errstate(over="ignore"):  # refused in the next line
          narrow = rows.astype(config.train.features_dtype)
        if not np.isfinite(narrow).all():
          raise errors.GazeError(
            "a feature of the tower does not fit"
            f" {config.train.features_dtype}; set train.features_dtype ="
            " 'float32'"
          )
        file.write(narrow.tobytes())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _encode(
  encode: Encoder,
  source: samples.Source,
  start: int,
  stop: int,
  units: int,
  shape: tuple[int, ...],
) -> np.ndarray:
  """Features of samples start .. stop - 1, 0 where a sample has no picture."""
  canvases = [source.canvas(i)[:units] for i in range(start, stop)]
  out = np.zeros((len(canvases), units, *shape[-2:]), np.float32)
  where = [(i, j) for i, c in enumerate(canvases) for j in range(len(c))]
  if where:
    features = encode([p for c in canvases for p in c])
    out[tuple(np.array(where).T)] = features
  return out.reshape(len(canvases), *shape)
