"""Benchmarks of a model: asked, written down, scored."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tqdm
from absl import logging

from gaze_jax import errors
from gaze_jax import json_file
from gaze_jax import schema
from gaze_jax import whole_file
from gaze_jax.api import identity
from gaze_jax.data import skipped
from gaze_jax.runtime import processes
from gaze_jax.tasks import asking
from gaze_jax.tasks import media
from gaze_jax.tasks import predictions as predictions_lib
from gaze_jax.tasks import results as results_lib
from gaze_jax.tasks import task as task_lib

_EXAMPLES = 5  # of media that are missing
# What predictions share with the files that they are scored with.
_FILES = ("files", "prompts_sha256")
# Metrics whose answers are letters or labels.
_NAMED = {
  *("videomme_letter", "mc5", "mmmu_mc", "mmbench", "cv_bench", "mmvp"),
  *("scienceqa", "mme_label", "pope_label", "tempcompass_yes_no"),
}


@dataclasses.dataclass(frozen=True)
class Suite:
  """Tasks, and what is asked of them.

  Attributes:
    tasks: in the order of the table.
    data: the folder of all data sets.
    limit: items of a task, whole clusters of them; None for all.
    partial: whether items may lack media, or predictions when they are scored.
    protocol: of `scoring.PROTOCOLS`.
    average: tasks whose scores are averaged.
  """

  tasks: Sequence[task_lib.Task]
  data: str
  limit: int | None = None
  partial: bool = False
  protocol: str = "default"
  average: Sequence[str] = ()


class Loaded(NamedTuple):
  """What a task's files hold.

  Attributes:
    every: all items.
    asked: those that are asked.
    files: `_of_files`.
  """

  every: list[task_lib.Item]
  asked: list[task_lib.Item]
  files: dict[str, Any]


def load(suite: Suite) -> dict[str, Loaded]:
  """Reads the files of all tasks, by their names.

  Items that share a picture or a video follow each other.

  Raises:
    errors.GazeError: a task's files are not there, lack a column, or have an
      item without a prompt or a gold; or a task to average is not asked.
  """
  names = [task.name for task in suite.tasks]
  if unknown := [name for name in suite.average if name not in names]:
    raise errors.GazeError(f"--average: {unknown[0]} is none of --tasks")
  out = {}
  for task in suite.tasks:
    every = task_lib.items(task, suite.data)
    if len(every) != task.items:
      logging.warning(
        "%s: %d items, and the published set has %d",
        *(task.name, len(every), task.items),
      )
    _check_items(task, every)
    asked = task_lib.limited(every, suite.limit)
    out[task.name] = Loaded(every, asked, _of_files(task, suite.data, every))
  return out


def run(
  model: Any,
  suite: Suite,
  loaded: Mapping[str, Loaded],
  ways: Mapping[pathlib.Path, asking.Options],
) -> dict[pathlib.Path, dict[str, Any]]:
  """Asks a model all tasks; what a folder holds already is not asked again.

  Of several processes all must call this; process 0 writes.

  Args:
    model: an `api.Model`.
    suite: the tasks.
    loaded: of `load`.
    ways: how it is asked, by the folder that gets predictions/, results.json
      and results.md.

  Returns:
    What results.json holds, by folder; nothing but on process 0.

  Raises:
    errors.GazeError: media are missing, or a folder holds predictions of
      another model, or another process writes there.
  """
  if not all(options.blind for options in ways.values()):
    for task in suite.tasks:
      _check_media(task, loaded[task.name].asked, suite.partial)
  with model.on_mesh():
    name = identity.of(model)
  results = {}
  for out, options in ways.items():
    with _alone(out):
      for task in suite.tasks:
        _, asked, files = loaded[task.name]
        made_by = _made_by(model, name, task, options) | files
        _ask(model, suite, task, asked, options, out, made_by)
      if processes.is_first():
        results[out] = score(suite, loaded, out)
      processes.share("scored")  # the others wait, and not in JAX's way out
  return results


@contextlib.contextmanager
def _alone(out: pathlib.Path) -> Iterator[None]:
  """Within it no other command writes into a folder; all processes call it.

  Raises:
    errors.GazeError: one does.
  """
  with contextlib.ExitStack() as stack:
    why = ""
    if processes.is_first():
      try:
        stack.enter_context(whole_file.locked(out / "lock", out))
      except errors.GazeError as error:
        why = str(error)
    if why := processes.share(why):
      raise errors.GazeError(why)
    yield


def score(
  suite: Suite, loaded: Mapping[str, Loaded], out: pathlib.Path
) -> dict[str, Any]:
  """Scores the predictions in a folder; writes results.json and results.md.

  Other tasks that results.json has stay there.

  Args:
    suite: the tasks.
    loaded: of `load`.
    out: of `run`.

  Raises:
    errors.GazeError: predictions are missing and `suite.partial` is not set, or
      they are of other files.
  """
  tasks, timing = {}, {}
  for task in suite.tasks:
    every, asked, files = loaded[task.name]
    made_by = predictions_lib.settings(out, task.name)
    predictions_lib.check_same(
      {key: made_by.get(key) for key in _FILES},
      files,
      predictions_lib.folder(out, task.name),
    )
    found = predictions_lib.read(out, task.name)
    missing = [item.id for item in asked if item.id not in found]
    if missing and not suite.partial:
      raise errors.GazeError(
        f"{predictions_lib.folder(out, task.name)}: {len(missing)} of"
        f" {len(asked)} items have no prediction (first: {missing[0]}); run the"
        " command again to ask them, or give --partial"
      )
    figures = results_lib.of_task(
      task, asked, found, protocol=suite.protocol, expected=len(every)
    )
    tasks[task.name] = figures | {"made_by": made_by}
    timing[task.name] = sum(one.seconds for one in found.values())
  before = _stored(out)
  results = schema.stamp("results") | {
    "tasks": before["tasks"] | tasks,
    **_average(suite, tasks),
    "timing": before["timing"] | timing,
  }
  text = json.dumps(results, indent=2, ensure_ascii=False)
  whole_file.write(out / "results.json", text + "\n")
  whole_file.write(out / "results.md", results_lib.markdown(results))
  return results


def _stored(out: pathlib.Path) -> dict[str, Any]:
  """The results that a folder has already."""
  path = out / "results.json"
  if not path.is_file():
    return {"tasks": {}, "timing": {}}
  found = json_file.read(path, errors.GazeError)
  schema.read(found, path, "results")
  return found


def _average(suite: Suite, tasks: Mapping[str, Any]) -> dict[str, Any]:
  """The mean of an explicit list of tasks, each of 100, and of nothing else."""
  if not suite.average:
    return {}
  for name in suite.average:
    if tasks[name]["score"] is None:
      raise errors.GazeError(f"--average: {name} has no score here")
  scores = [
    100 * tasks[name]["score"] / tasks[name]["most"] for name in suite.average
  ]
  mean = sum(scores) / len(scores)
  return {"average": {"of": list(suite.average), "score": mean}}


def _check_items(task: task_lib.Task, every: Iterable[task_lib.Item]) -> None:
  """Prompts and golds of all items, before any is asked.

  Raises:
    errors.GazeError: an item has none, as a cell is empty or of another kind.
  """
  for item in every:
    try:
      task_lib.prompt_of(task, item)
      why = "" if _has_gold(task, item) else "no answer to it would be right"
    except (
      *(TypeError, AttributeError, ValueError, KeyError),
      errors.GazeError,
    ) as error:
      why = f"{type(error).__name__}: {error}"
    if why:
      cells = skipped.one_line(repr(item.fields))[:300]
      raise errors.GazeError(
        f"{task.name}: item {item.id!r} has no prompt or no gold ({why}):"
        f" {cells}"
      )


def _has_gold(task: task_lib.Task, item: task_lib.Item) -> bool:
  """Whether an answer can be right, where it is a letter or a label.

  Of MLVU two published items have none; what answers in words has its gold,
  which one answer is scored with to see that it can be read.
  """
  value = lambda text: results_lib.verdict(task, item, text, "default").value
  if task.metric(item.fields) not in _NAMED:
    value("A")
    return True
  return any(map(value, [*string.ascii_uppercase, "yes", "no"]))


def _check_media(
  task: task_lib.Task, items: Iterable[task_lib.Item], partial: bool
) -> None:
  """Names files of pictures and videos that are not there, before any is asked.

  Raises:
    errors.GazeError: some are missing, and no part of the items is asked for;
      or all of them.
  """
  total, missing = 0, []
  for item in items:
    total += 1
    for one in (*item.images, *((item.video,) if item.video else ())):
      if isinstance(one, (media.Named, media.Clip)):
        try:
          one.source()
        except skipped.SkipError as error:
          missing.append(f"{item.id}: {error}")
          break
  if not missing:
    return
  text = (
    f"{task.name}: {len(missing)} of {total} items lack their picture or video;"
    f" first: {'; '.join(missing[:_EXAMPLES])}"
  )
  if not partial or len(missing) == total:
    raise errors.GazeError(f"{text}. --partial asks the rest")
  logging.warning("%s. They count as wrong", text)


def _made_by(
  model: Any, name: str, task: task_lib.Task, options: asking.Options
) -> dict[str, Any]:
  """What a prediction depends on, but for the task's files; fit for JSON."""
  return {
    "model": name,
    "tokenizer": model.tokenizer.fingerprint(),
    "budget": {"top_k": options.top_k, "share": options.share},
    "regions": options.regions,
    "blind": options.blind,
    "frames": options.frames if task.video else None,
    "max_pixels": model.config.data.max_pixels,
    "max_tokens": task.max_tokens,
    "decoding": "greedy",
    "batch_size": options.batch_size,
    "dtype": model.config.model.decoder.dtype,
    "system": task.system,
    "begins": task.begins,
    "code": importlib.metadata.version("gaze_jax"),
  }


def _of_files(
  task: task_lib.Task, data: str, every: Sequence[task_lib.Item]
) -> dict[str, Any]:
  """A task's files and prompts, by which predictions are known to be of them.

  Files are hashed by process 0, and known to the others by their names.
  """
  _, files = task_lib.found(task, data)
  folder = os.path.join(data, task.folder)
  first = processes.is_first()
  prompts = [task_lib.prompt_of(task, item) for item in every]
  digest = hashlib.sha256("\0".join(prompts).encode("utf-8", "replace"))
  return {
    "prompt": prompts[0],
    "prompts_sha256": digest.hexdigest(),
    "files": {
      os.path.relpath(path, folder): _sha256(path) if first else ""
      for some in files
      for path in some
    },
  }


def _sha256(path: str) -> str:
  about = os.stat(path)
  return _digest(path, about.st_size, about.st_mtime_ns)


@functools.cache
def _digest(path: str, *about: int) -> str:
  """Of a file, which is read once while its size and time stay."""
  del about
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _begun(
  out: pathlib.Path, task: task_lib.Task, made_by: dict[str, Any]
) -> dict[str, predictions_lib.Prediction | None]:
  """The predictions so far by the names of items, which process 0 tells all.

  The predictions themselves are process 0's alone. Those of items that could
  not be asked are left out: they are asked again.

  Raises:
    errors.GazeError: they were made by something else, or process 0 was given
      something else than this one.
  """
  told: dict[str, Any] = {"made_by": made_by}
  found: dict[str, predictions_lib.Prediction] = {}
  if processes.is_first():
    try:
      predictions_lib.begin(out, task.name, made_by)
      found = predictions_lib.read(out, task.name)
      told["done"] = [name for name, one in found.items() if not one.error]
    except errors.GazeError as error:
      told["error"] = str(error)
  told = json.loads(processes.share(json.dumps(told)) or "{}")
  if "error" in told:
    raise errors.GazeError(told["error"])
  theirs = told["made_by"]
  theirs["files"] = dict.fromkeys(theirs["files"], "")
  mine = made_by | {"files": dict.fromkeys(made_by["files"], "")}
  predictions_lib.check_same(theirs, mine, "process 0")
  return {name: found.get(name) for name in told["done"]}


def _ask(
  model: Any,
  suite: Suite,
  task: task_lib.Task,
  items: Sequence[task_lib.Item],
  options: asking.Options,
  out: pathlib.Path,
  made_by: dict[str, Any],
) -> None:
  """Asks the items that have no prediction yet; shows the score so far."""
  done = _begun(out, task, made_by)
  by_id = {item.id: item for item in items}
  wanted = [item for item in items if item.id not in done]
  answers = asking.ask(model, task, wanted, options)
  if not processes.is_first():
    for _ in answers:
      pass
    return
  value = lambda one: (
    0.0
    if one.error
    else results_lib.verdict(
      task, by_id[one.id], one.text, suite.protocol
    ).value
  )
  values = [value(one) for name, one in done.items() if name in by_id]
  right, count = sum(values), len(values)
  bar = tqdm.tqdm(
    total=len(items), initial=count, desc=task.name, mininterval=1
  )
  with predictions_lib.Writer(out, task.name) as writer, bar:
    for one in answers:
      writer.write(one)
      right, count = right + value(one), count + 1
      bar.set_postfix_str(f"{100 * right / count:.1f} % so far")
      bar.update()
