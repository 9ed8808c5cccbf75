"""Features of a frozen tower, computed once and read from disk after that.

The file's name is a hash of everything that decides its content (tower,
weights, preprocessing, pictures), so a stale file is never read: it is simply
not found. A file appears under its name only when it is complete; one that was
truncated since is computed anew.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import secrets
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging
from jax.experimental import multihost_utils

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import images
from gaze_jax.data import samples
from gaze_jax.models import vision
from gaze_jax.train import pretrained

_VERSION = 1  # raise when the code changes what a feature is
_ROWS = 32  # images encoded at a time


def encode(
  config: config_lib.VisionConfig,
  params: dict[str, Any],
  pictures: list[np.ndarray],
) -> np.ndarray:
  """Features of uint8 pictures, `_ROWS` at a time.

  Args:
    config: the tower and its preprocessing.
    params: of the tower, from `pretrained.tower`.
    pictures: uint8 [height, width, 3] each.

  Returns:
    float32 [len(pictures), T, F].
  """
  out = []
  for start in range(0, len(pictures), _ROWS):
    some = pictures[start : start + _ROWS]
    pixels = np.stack([images.preprocess(p, config) for p in some])
    room = ((0, _ROWS - len(some)), (0, 0), (0, 0), (0, 0))
    features = _tower(config, params, np.pad(pixels, room))
    out.append(np.asarray(features)[: len(some)])
  return np.concatenate(out)


@functools.partial(jax.jit, static_argnums=0)
def _tower(config, params, pixels):
  return vision.ViT(config).apply({"params": params}, pixels)


def cached(
  config: config_lib.Config,
  source: samples.Source,
  directory: pathlib.Path,
  *,
  run: config_lib.Config | None = None,
) -> np.ndarray:
  """Features of every canvas of a source, computed if they are not on disk.

  Of several processes, which must all call it, process 0 computes them.

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
  several, first = jax.process_count() > 1, jax.process_index() == 0
  if several and not first:
    multihost_utils.sync_global_devices("features")
  if not _is_whole(path):
    directory.mkdir(parents=True, exist_ok=True)
    _build(config, source, path, pretrained.tower(run or config))
  if several and first:
    multihost_utils.sync_global_devices("features")
  return np.load(path, mmap_mode="r")


def _is_whole(path: pathlib.Path) -> bool:
  """Whether a file of features is there, as long as its header says."""
  if not path.exists():
    return False
  try:
    np.load(path, mmap_mode="r")
  except (ValueError, EOFError) as error:
    logging.warning("%s is broken (%s): it is computed anew", path, error)
    return False
  return True


def _key(config: config_lib.Config, source: samples.Source) -> str:
  decides = dict(
    version=_VERSION,
    vision=dataclasses.asdict(config.model.vision),
    units=config.data.max_units,
    seed=config.train.seed,
    dtype=config.train.features_dtype,
    source=source.fingerprint(),
    init_from=pretrained.fingerprint(config),
  )
  text = json.dumps(decides, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def _build(
  config: config_lib.Config,
  source: samples.Source,
  path: pathlib.Path,
  tower: dict[str, Any],
) -> None:
  c, units = config.model.vision, config.data.max_units
  each = (c.tokens, c.width) if units == 1 else (units, c.tokens, c.width)
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
          shape=(len(source), *each),
        ),
      )
      chunks = range(0, len(source), _ROWS)
      for start in tqdm.tqdm(chunks, "features", unit="batch", mininterval=5):
        numbers = range(start, min(start + _ROWS, len(source)))
        canvases = [source.canvas(i)[:units] for i in numbers]
        rows = _features_of(canvases, config, tower)
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


def _features_of(
  canvases: list[tuple[np.ndarray, ...]],
  config: config_lib.Config,
  tower: dict[str, Any],
) -> np.ndarray:
  """float32 [samples, units, T, F], 0 where a sample has no picture."""
  c, units = config.model.vision, config.data.max_units
  out = np.zeros((len(canvases), units, c.tokens, c.width), np.float32)
  where = [(i, j) for i, one in enumerate(canvases) for j in range(len(one))]
  if where:
    features = encode(c, tower, [p for one in canvases for p in one])
    out[tuple(np.array(where).T)] = features
  return out
