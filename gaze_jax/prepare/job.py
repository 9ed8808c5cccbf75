"""Prepares a data set: shards side by side, then one data set of them.

While it runs, everything is in DIR/.preparing, a shard with a file of facts
that is written last. Killed, it goes on with the shards that are not there. At
the end the shards get their names, and `gaze_data.json` is written last: what
has it is whole.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from gaze_jax import errors
from gaze_jax import schema
from gaze_jax import whole_file
from gaze_jax.data import prepared
from gaze_jax.data import record as record_lib
from gaze_jax.data import record_index
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.prepare import origins
from gaze_jax.prepare import shard as shard_lib

_WORK = ".preparing"
_NAME = re.compile("[a-z][a-z0-9_]*")  # as tensorflow-datasets wants it


@dataclasses.dataclass(frozen=True)
class Plan:
  """What decides the content of a data set, beside its origin.

  Attributes:
    name: of the data set, in its files.
    split: likewise.
    shard_samples: samples of the origin that a shard is made of.
    options: what is done with each sample.
  """

  name: str = "prepared"
  split: str = "train"
  shard_samples: int = 5000
  options: shard_lib.Options = shard_lib.Options()


def prepare(
  origin: origins.Origin,
  directory: pathlib.Path,
  plan: Plan,
  *,
  max_skipped: float,
  workers: int,
) -> str:
  """Prepares a data set; called again, it goes on where it was.

  Args:
    origin: of the data.
    directory: where to; new, empty, or one that was begun with the same plan.
    plan: what decides the content.
    max_skipped: share of the samples that may be skipped.
    workers: processes; 0 prepares in this one.

  Returns:
    What was made, as a line.

  Raises:
    errors.GazeError: the directory is another's, the data can't be used, or too
      much of it is skipped. What was prepared is kept.
  """
  identity = _identity(origin, plan)
  work = directory / _WORK
  try:
    if _is_done(directory, identity):
      return f"{directory} is prepared already"
    with whole_file.locked(work / "lock", directory):
      if _is_done(directory, identity):  # another process has ended since
        shutil.rmtree(work)
        return f"{directory} is prepared already"
      _check_plan(work, directory, identity)
      facts = _shards(origin, work, plan, workers)
      _check_skipped(facts, directory, max_skipped)
      _finish(directory, plan, facts, identity)
      shutil.rmtree(work)
  except OSError as error:
    raise errors.GazeError(
      f"{error.filename or directory}: {errors.system_message(error)}; what was"
      " prepared is kept, and the same command goes on from there"
    ) from None
  records = sum(one.records for one in facts)
  left_out = sum(len(one.skipped) for one in facts)
  return (
    f"{directory}: {records} samples in {len(facts)} shards, {left_out} skipped"
    f" ({prepared.SKIPPED})"
  )


def add_index(directory: pathlib.Path, tokenizer: str) -> str:
  """Counts the texts of a prepared data set by another tokenizer.

  Args:
    directory: of the data set.
    tokenizer: as `data.tokenizer`.

  Returns:
    What was made, as a line.

  Raises:
    errors.GazeError: it can't be read or written.
  """
  data = prepared.open_set(str(directory))
  by = tokenizer_lib.Tokenizer.load(tokenizer)
  records = data.shards()
  records.check()
  counts = []
  for i in tqdm.tqdm(
    range(len(records)), "index", unit="sample", mininterval=5
  ):
    counts.append(record_index.count(record_lib.parse(records[i]).sample, by))
  path = directory / prepared.INDEX / record_index.text_file(by)
  try:
    with whole_file.replacing(path) as partial:
      np.array(counts, record_index.TEXT).tofile(partial)
  except OSError as error:
    raise errors.GazeError(f"{path}: {errors.system_message(error)}") from None
  return f"{path}: {len(counts)} samples"


def _identity(origin: origins.Origin, plan: Plan) -> dict[str, Any]:
  """What decides the content, by name."""
  for what, name in (("name", plan.name), ("split", plan.split)):
    if not _NAME.fullmatch(name):
      raise errors.GazeError(
        f"--{what}={name}: take small letters, digits and underscores, such as"
        " my_data"
      )
  values = dataclasses.asdict(plan)
  options = values.pop("options")
  by = tokenizer_lib.Tokenizer.load(options["tokenizer"])
  options["tokenizer"] = by.fingerprint()
  return dict(origin=origins.describe(origin)) | values | options


def _is_done(directory: pathlib.Path, identity: dict[str, Any]) -> bool:
  """Whether a directory holds this data set; it may hold no other."""
  if (directory / prepared.META).is_file():
    before = prepared.open_set(str(directory)).identity
    if changed := _changed(before, identity):
      raise errors.GazeError(
        f"{directory} holds another data set ({changed}); prepare into a new"
        " directory"
      )
    return True
  there = sorted(os.listdir(directory)) if directory.is_dir() else []
  if there and _WORK not in there:
    raise errors.GazeError(
      f"{directory} holds something else ({there[0]}); prepare into a new"
      " directory"
    )
  return False


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
  names = [key for key in now if before.get(key) != now[key]]
  return ", ".join(
    f"another {name}"
    if name in ("origin", "tokenizer")
    else f"{name} = {before.get(name)!r}, now {now[name]!r}"
    for name in names
  )


def _check_plan(
  work: pathlib.Path, directory: pathlib.Path, identity: dict[str, Any]
) -> None:
  path = work / "plan.json"
  if path.is_file():
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := _changed(before, identity):
      raise errors.GazeError(
        f"{directory} was begun otherwise ({changed}); give the same flags, or"
        " remove it and start anew"
      )
  whole_file.write(path, json.dumps(identity))


def _shards(
  origin: origins.Origin, work: pathlib.Path, plan: Plan, workers: int
) -> list[shard_lib.Facts]:
  """Writes the shards that are not there, and gives the facts of all."""
  found: dict[int, shard_lib.Facts] = {}
  bar = tqdm.tqdm(desc="prepare", unit="sample", mininterval=5)

  def add(number: int, facts: shard_lib.Facts) -> None:
    found[number] = facts
    bar.update(facts.records + len(facts.skipped))
    bar.set_postfix(shards=len(found), refresh=False)

  def missing() -> Iterator[tuple[int, Any]]:
    for number, part in enumerate(origin.parts(plan.shard_samples)):
      if facts := shard_lib.read(work, number):
        add(number, facts)
      else:
        yield number, part

  write = lambda job: (work, job[0], origin, job[1], plan.options)
  with contextlib.closing(bar):
    if not workers:
      for job in missing():
        add(job[0], shard_lib.write(*write(job)))
    else:
      _in_processes(map(write, missing()), workers, add)
  return [found[number] for number in sorted(found)]


def _in_processes(jobs: Iterator[tuple], workers: int, add: Any) -> None:
  """Runs `shard.write` on each, two for each process at a time."""
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
  try:
    running: dict[concurrent.futures.Future, int] = {}
    while True:
      for job in itertools.islice(jobs, 2 * workers - len(running)):
        running[pool.submit(shard_lib.write, *job)] = job[1]
      if not running:
        return
      done, _ = concurrent.futures.wait(
        running, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for one in done:
        add(running.pop(one), one.result())
  except concurrent.futures.process.BrokenProcessPool:
    raise errors.GazeError(
      "a process that prepared was killed, perhaps for want of memory; fewer"
      " --workers need less, and the same command goes on"
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _check_skipped(
  facts: list[shard_lib.Facts], directory: pathlib.Path, share: float
) -> None:
  left_out = [one for shard in facts for one in shard.skipped]
  total = sum(shard.records for shard in facts) + len(left_out)
  _write_skipped(directory / _WORK / prepared.SKIPPED, left_out)
  if not total:
    raise samples.DataError(f"{directory}: there is no sample in the data")
  if len(left_out) > share * total or len(left_out) == total:
    first = "; ".join(f"{p}: {r}: {why}" for p, r, why in left_out[:3])
    raise samples.DataError(
      f"{len(left_out)} of {total} samples can't be used, more than"
      f" --max_skipped={share} allows; all are in"
      f" {directory / _WORK / prepared.SKIPPED}; first: {first}. With a larger"
      " --max_skipped the same command ends at once"
    )


def _write_skipped(
  path: pathlib.Path, left_out: list[tuple[str, str, str]]
) -> None:
  lines = [
    json.dumps(dict(place=place, reason=reason, detail=detail))
    for place, reason, detail in left_out
  ]
  whole_file.write(path, "".join(f"{line}\n" for line in lines))


def _finish(
  directory: pathlib.Path,
  plan: Plan,
  facts: list[shard_lib.Facts],
  identity: dict[str, Any],
) -> None:
  """Gives all files their names; killed within, it can be called again."""
  work, index = directory / _WORK, directory / prepared.INDEX
  index.mkdir(exist_ok=True)
  numbers = range(len(facts))
  by = tokenizer_lib.Tokenizer.load(plan.options.tokenizer)
  _join_index(work, index, numbers, record_index.text_file(by))
  names = [
    f"{plan.name}-{plan.split}.array_record-{i:05d}-of-{len(facts):05d}"
    for i in numbers
  ]
  for i, name in zip(numbers, names, strict=True):
    written = shard_lib.files(work, i)["array_record"]
    if written.exists():
      os.replace(written, directory / name)
  shutil.copyfile(work / prepared.SKIPPED, directory / prepared.SKIPPED)
  _write_tfds_metadata(directory, plan, facts)
  shards = [
    dict(file=name, records=f.records, bytes=f.file_bytes, sha256=f.sha256)
    for name, f in zip(names, facts, strict=True)
  ]
  content = schema.stamp("data") | dict(
    name=plan.name, split=plan.split, shards=shards, identity=identity
  )
  whole_file.write(directory / prepared.META, json.dumps(content, indent=1))


def _join_index(
  work: pathlib.Path, index: pathlib.Path, numbers: range, text: str
) -> None:
  """Joins the parts of the index; media are numbered through all shards."""
  parts = [shard_lib.files(work, i) for i in numbers]
  for kind, name in dict(media=record_index.MEDIA, text=text).items():
    with whole_file.replacing(index / name) as partial:
      with open(partial, "wb") as out:
        for its in parts:
          out.write(its[kind].read_bytes())
  first = 0
  with whole_file.replacing(index / record_index.RECORDS) as partial:
    with open(partial, "wb") as out:
      for its in parts:
        rows = np.fromfile(its["records"], record_index.RECORD)
        rows["first"] += first
        first += int(rows["media"].sum())
        rows.tofile(out)


def _write_tfds_metadata(
  directory: pathlib.Path, plan: Plan, facts: list[shard_lib.Facts]
) -> None:
  """What `tfds.builder_from_directory` reads."""
  template = tfds.core.ShardedFileTemplate(
    data_dir=directory,
    dataset_name=plan.name,
    split=plan.split,
    filetype_suffix="array_record",
  )
  split = tfds.core.SplitInfo(
    name=plan.split,
    shard_lengths=[f.records for f in facts],
    num_bytes=sum(f.record_bytes for f in facts),
    filename_template=template,
  )
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=record_lib.features(),
    split_infos=[split],
    filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    check_data=False,  # it would import TensorFlow
  )
