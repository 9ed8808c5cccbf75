"""What a task is: items out of files, a prompt, a metric, a total."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gaze_jax.data import samples
from gaze_jax.tasks import media

Fields = dict[str, Any]

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")
# How the instruction begins and ends is part of a protocol: prompts are as
# lmms-eval 0.7.3 writes them, unless a task's note says otherwise.
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclasses.dataclass(frozen=True)
class Item:
  """A question of a task.

  Attributes:
    id: unique within the task, and the same whenever its files are.
    fields: of the data set's row, under the names that its scorer, its total
      and its prompt read.
    images: what is shown, in the order of the prompt.
    video: what is shown in their place; None for none.
    subtitles: a file of SubRip; "" for none.
    place: among all items, in the order of the files.
    cluster: what it shares with others.
  """

  id: str
  fields: Fields
  images: tuple[media.Medium, ...] = ()
  video: media.Medium | None = None
  subtitles: str = ""
  place: int = -1
  cluster: str = ""


@dataclasses.dataclass(frozen=True)
class Files:
  """A form in which a data set is published.

  Attributes:
    patterns: of glob, below the data set's folder; each must match a file.
    read: (folder, the files of each pattern) -> items.
  """

  patterns: tuple[str, ...]
  read: Callable[..., Iterator[Item]]


def whole(fields: Fields) -> Fields:
  """The reference of a task whose scorer reads the fields as they are."""
  return fields


@dataclasses.dataclass(frozen=True)
class Task:
  """A row of the registry.

  Attributes:
    name: of the task.
    folder: of its data set, below `--data`.
    forms: that it is published in; the first that is there is read.
    items: how many it has.
    prompt: fields -> the user's turn. Where `<image>` is written one of the
      images stands; what is written nowhere comes first.
    metric: fields -> one of `scoring.METRICS`.
    source: where its files come from.
    reference: fields -> what the scorer reads.
    cluster: fields -> items of one cluster share an image, a video or a pair.
      None where no field tells: then they show the same pictures, by the bytes
      of these.
    again: (fields, n) -> those of an item that is drawn for the nth time
      again, as of a cluster of its own; None where the total does not tell
      clusters apart.
    system: a system text; None for that of the model's chat format.
    begins: what each answer begins with, as in `api.Request`.
    max_tokens: of an answer.
    total: of `totals.TOTALS`; the name by default.
    paper: the headline in the paper's table, or None: of its 4B model with
      Gaze, of images at 144 + 4 entries, of videos at 4K.
    most: points that the headline has at most; it is a share of these, or
      counts them itself.
    counted: whether the headline counts points, and is no share.
    video: whether items are videos.
    note: what must be known beside its figure.
  """

  name: str
  folder: str
  forms: tuple[Files, ...]
  items: int
  prompt: Callable[[Fields], str]
  metric: Callable[[Fields], str]
  source: str
  reference: Callable[[Fields], Fields] = whole
  cluster: Callable[[Fields], str] | None = None
  again: Callable[[Fields, int], Fields] | None = None
  system: str | None = None
  begins: str = ""
  max_tokens: int = 16
  total: str = ""
  paper: float | None = None
  most: float = 100.0
  counted: bool = False
  video: bool = False
  note: str = ""


def options(texts: Sequence[str]) -> str:
  """Lines `A. text`."""
  return "\n".join(f"{chr(65 + i)}. {text}" for i, text in enumerate(texts))


def found(task: Task, data: str) -> tuple[Files, list[list[str]]]:
  """The form in which a task's files are there, and the files of each pattern.

  Args:
    task: any.
    data: the folder of all data sets.

  Raises:
    samples.DataError: none is there whole, or a file is there twice.
  """
  folder = os.path.join(data, task.folder)
  for form in task.forms:
    files = [media.files(folder, pattern) for pattern in form.patterns]
    if all(files):
      for pattern, some in zip(form.patterns, files, strict=True):
        _check_one(task, pattern, some)
        _check_shards(task, some)
      return form, files
  wanted = "; or ".join(", ".join(form.patterns) for form in task.forms)
  raise samples.DataError(
    f"{task.name}: its files are not in {folder}. Wanted there: {wanted}"
    f" ({task.source}){media.instead(folder)}"
  )


def _check_one(task: Task, pattern: str, some: Sequence[str]) -> None:
  """Refuses copies of a file of which there is one."""
  if len(some) > 1 and "*" not in os.path.basename(pattern):
    raise samples.DataError(
      f"{task.name}: {', '.join(some[:3])}: keep one of these {len(some)}"
    )


def _check_shards(task: Task, some: Sequence[str]) -> None:
  """Refuses a table of which a part is missing: NAME-00001-of-00003."""
  found: dict[tuple[str, int], set[int]] = {}
  for path in some:
    if parts := _SHARD.search(path):
      name = path[: parts.start()], int(parts[2])
      found.setdefault(name, set()).add(int(parts[1]))
  for (name, count), numbers in found.items():
    if missing := sorted(set(range(count)) - numbers):
      raise samples.DataError(
        f"{task.name}: {name}-{missing[0]:05d}-of-{count:05d} is missing, and"
        f" {len(missing)} of {count} in all: download the rest"
      )


def items(task: Task, data: str) -> list[Item]:
  """All items of a task, those of a cluster side by side.

  Raises:
    samples.DataError: its files are not there, lack a column, or have an id
      twice.
  """
  form, files = found(task, data)
  folder = os.path.join(data, task.folder)
  out: dict[str, Item] = {}
  for place, item in enumerate(form.read(folder, *files)):
    if item.id in out:
      raise samples.DataError(
        f"{task.name}: item {item.id!r} is in {folder} twice: keep one copy of"
        " its files there"
      )
    out[item.id] = dataclasses.replace(
      item, place=place, cluster=_cluster(task, item)
    )
  if not out:
    raise samples.DataError(f"{task.name}: no item in {', '.join(files[0])}")
  clusters: dict[str, list[Item]] = {}
  for item in out.values():
    clusters.setdefault(item.cluster, []).append(item)
  return [item for some in clusters.values() for item in some]


def prompt_of(task: Task, item: Item) -> str:
  """The prompt, with dots for the subtitles, which depend on the frames."""
  return task.prompt(item.fields | {"subtitles": item.subtitles and "..."})


def _cluster(task: Task, item: Item) -> str:
  """What an item shares with others: an image, a video, a pair."""
  if task.cluster:
    return task.cluster(item.fields)
  return media.fingerprint(item.images) or f"item {item.id}"


def limited(some: list[Item], limit: int | None) -> list[Item]:
  """The first items, whole clusters of them, `limit` or a few more."""
  if limit is None:
    return some
  out: list[Item] = []
  for item in some:
    if len(out) >= limit:
      if not out or item.cluster != out[-1].cluster:
        break
    out.append(item)
  return out
