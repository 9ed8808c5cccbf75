"""The ids that end an answer, from the files beside a tokenizer.json."""

import pathlib
from collections.abc import Iterator

from gaze_jax import json_file
from gaze_jax.data import samples

_FILES = ("generation_config.json", "config.json")


def beside(file: pathlib.Path) -> tuple[int, ...]:
  """Every eos_token_id of generation_config.json and config.json.

  A model may have several, of which its chat template shows one. transformers
  asks the second file where the first says nothing; an answer that either ends
  is ended here. An id below 0 is none, as some files have it.

  Args:
    file: a tokenizer.json, with or without such files in its folder.

  Raises:
    samples.DataError: one can't be read, or its ids are no whole numbers.
  """
  found: list[int] = []
  for name in _FILES:
    path = file.with_name(name)
    if path.is_file():
      found += _ids(path)
  return tuple(dict.fromkeys(found))


def _ids(path: pathlib.Path) -> Iterator[int]:
  raw = json_file.read(path, samples.DataError)
  texts = raw.get("text_config")  # of a whole model
  for table in (raw, texts if isinstance(texts, dict) else {}):
    value = table.get("eos_token_id")
    for one in value if isinstance(value, list) else [value]:
      if one is None:
        continue
      if type(one) is not int:
        raise samples.DataError(
          f"{path}: eos_token_id = {value!r} must be the id of a token, or a"
          " list of them"
        )
      if one >= 0:
        yield one
