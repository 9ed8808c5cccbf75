"""Tables of data sets: Parquet, JSON, CSV; what they lack is named."""

import contextlib
import csv
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow
from pyarrow import parquet

from gaze_jax import json_file
from gaze_jax.data import samples
from gaze_jax.tasks import media
from gaze_jax.tasks.task import Fields
from gaze_jax.tasks.task import Item


def rows(
  files: Iterable[str],
  columns: Sequence[str],
  *,
  optional: Sequence[str] = (),
  pictures: Sequence[str] = (),
) -> Iterator[tuple[dict[str, Any], dict[str, media.Cell]]]:
  """Rows of Parquet tables, without their pictures.

  Args:
    files: in order.
    columns: that must be there.
    optional: that are read where they are there.
    pictures: columns of pictures, which must be there too.

  Yields:
    The fields of a row, and where each of its pictures is.

  Raises:
    samples.DataError: a file is no table, or has no such column.
  """
  for file in files:
    with _reading(file):
      table = parquet.ParquetFile(file, memory_map=True)
    with table:
      names = table.schema_arrow.names
      need(names, (*columns, *pictures), file)
      wanted = [*columns, *(c for c in optional if c in names)]
      for group in range(table.num_row_groups):
        with _reading(file):
          read = table.read_row_group(group, columns=wanted).to_pylist()
        for row, fields in enumerate(read):
          cells = {c: media.Cell(file, group, row, c) for c in pictures}
          yield fields, cells


def of_table(
  id_of: Callable[[Fields], Any] | None,
  columns: Sequence[str],
  *,
  picture: str = "image",
  optional: Sequence[str] = (),
  keep: Callable[[Fields], bool] = lambda fields: True,
) -> Callable[..., Iterator[Item]]:
  """A reader of Parquet tables with a picture a row.

  Args:
    id_of: fields -> the item's name; None for the row's number.
    columns: that are read.
    picture: the column of pictures.
    optional: columns that are read where they are.
    keep: fields -> whether the row is an item.
  """

  def read(folder: str, *files: Sequence[str]) -> Iterator[Item]:
    every = [file for some in files for file in some]
    found = rows(every, columns, optional=optional, pictures=[picture])
    for number, (fields, cells) in enumerate(found):
      if keep(fields):
        name = number if id_of is None else id_of(fields)
        yield Item(str(name), fields, (cells[picture],))

  return read


@contextlib.contextmanager
def _reading(file: str) -> Iterator[None]:
  """Says of a file that Parquet's reader gives up which one it is."""
  try:
    yield
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    why = " ".join(str(error).split())[:200]
    raise samples.DataError(
      f"{file}: no Parquet table, or a broken one ({why})"
    ) from None


def unused(value: Any, mark: str) -> bool:
  """Whether a cell stands for nothing: null, no text, or the set's mark."""
  return value is None or value != value or str(value) in (mark, "")


def json_of(path: str) -> Any:
  """The value in a file of JSON.

  Raises:
    samples.DataError: it can't be read, or is none.
  """
  text = json_file.read_text(pathlib.Path(path), samples.DataError)
  try:
    return json_file.parse(text)
  except json_file.NotJsonError as error:
    raise samples.DataError(f"{path} is not JSON: {error}") from None


def records(path: str, columns: Sequence[str]) -> list[dict[str, Any]]:
  """The objects of a file of JSON: a list of them, or one under "data".

  Raises:
    samples.DataError: it holds something else, or one has no such key.
  """
  value = json_of(path)
  if isinstance(value, dict) and isinstance(value.get("data"), list):
    value = value["data"]
  if not isinstance(value, list):
    raise samples.DataError(
      f"{path}: a list is needed, got {type(value).__name__}"
    )
  for number, one in enumerate(value):
    check(one, columns, f"{path}, item {number}")
  return value


def table_of(path: str, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
  """The objects of a file of JSON, by their keys.

  Raises:
    samples.DataError: it holds something else, or one has no such key.
  """
  value = json_file.read(pathlib.Path(path), samples.DataError)
  for key, one in value.items():
    check(one, columns, f"{path}, {key}")
  return value


def lines(
  path: str, columns: Sequence[str], renamed: dict[str, str] | None = None
) -> Iterator[dict[str, str]]:
  """The rows of a file of CSV.

  Args:
    path: of the file.
    columns: that must be there.
    renamed: headers that are misspelt in published files, and what is meant.

  Raises:
    samples.DataError: it can't be read, or has no such column.
  """
  text = json_file.read_text(pathlib.Path(path), samples.DataError)
  try:
    read = list(csv.reader(io.StringIO(text, newline="")))
  except csv.Error as error:
    raise samples.DataError(f"{path}: no CSV ({error})") from None
  header, *cells = read or [[]]
  names = [name.strip() for name in header]
  names = [(renamed or {}).get(name, name) for name in names]
  need(names, columns, path)
  for number, values in enumerate(cells, 2):
    if values and len(values) != len(names):
      raise samples.DataError(
        f"{path}, row {number}: {len(values)} cells under {len(names)} headers"
      )
    if values:
      yield dict(zip(names, values, strict=True))


def check(one: Any, columns: Sequence[str], where: str) -> None:
  """Refuses a value that is no object, or lacks a key."""
  if not isinstance(one, dict):
    raise samples.DataError(
      f"{where}: an object is needed, got {type(one).__name__}"
    )
  need(one, columns, where)


def need(names: Iterable[str], wanted: Sequence[str], where: str) -> None:
  """Refuses what has not all of these columns."""
  there = list(names)
  if missing := [name for name in wanted if name not in there]:
    raise samples.DataError(
      f"{os.fspath(where)}: no column {', '.join(map(repr, missing))}; it has"
      f" {', '.join(map(repr, there[:20]))}"
    )
