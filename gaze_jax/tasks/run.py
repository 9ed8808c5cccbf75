"""Benchmarks of a model: asked, written down, scored."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tqdm
from absl import logging

from gaze_jax import errors
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


# All items of each task by its name, and those that are asked.
Loaded = dict[str, tuple[list[task_lib.Item], list[task_lib.Item]]]


def load(suite: Suite) -> Loaded:
  """Reads the files of all tasks.

  Raises:
    errors.GazeError: a task's files are not there, lack a column, or have an
      item without a prompt or a gold.
  """
  out = {}
  for task in suite.tasks:
    every = task_lib.items(task, suite.data)
    _check_items(task, every)
    out[task.name] = every, task_lib.limited(task, every, suite.limit)
  return out


def run(
  model: Any,
  suite: Suite,
  loaded: Loaded,
  options: asking.Options,
  out: pathlib.Path,
) -> dict[str, Any]:
  """Asks a model all tasks; what `out` holds already is not asked again.

  Of several processes all must call this; process 0 writes.

  Args:
    model: an `api.Model`.
    suite: the tasks.
    loaded: of `load`.
    options: how it is asked.
    out: gets predictions/, results.json and results.md.

  Returns:
    What results.json holds.

  Raises:
    errors.GazeError: media are missing, or `out` holds predictions of another
      model.
  """
  for task in suite.tasks:
    every, asked = loaded[task.name]
    _check_count(task, every)
    _check_media(task, asked, suite.partial or options.blind)
  with model.on_mesh():
    name = identity.of(model)
  for task in suite.tasks:
    every, asked = loaded[task.name]
    made_by = _made_by(model, name, task, every, suite, options)
    _ask(model, suite, task, asked, options, out, made_by)
  return score(suite, loaded, out) if processes.is_first() else {}


def score(suite: Suite, loaded: Loaded, out: pathlib.Path) -> dict[str, Any]:
  """Scores the predictions in a folder; writes results.json and results.md.

  Args:
    suite: the tasks.
    loaded: of `load`.
    out: of `run`.

  Raises:
    errors.GazeError: predictions are missing and `suite.partial` is not set.
  """
  tasks, timing = {}, {}
  for task in suite.tasks:
    every, asked = loaded[task.name]
    found = predictions_lib.read(out, task.name)
    made_by = predictions_lib.settings(out, task.name)
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
  results = schema.stamp("results") | {
    "made_by": {"protocol": suite.protocol},
    "tasks": tasks,
    **_average(suite, tasks),
    "timing": timing,
  }
  text = json.dumps(results, indent=2, ensure_ascii=False)
  whole_file.write(out / "results.json", text + "\n")
  whole_file.write(out / "results.md", results_lib.markdown(results))
  return results


def _average(suite: Suite, tasks: Mapping[str, Any]) -> dict[str, Any]:
  """The mean of an explicit list of tasks, and of nothing else."""
  if not suite.average:
    return {}
  for name in suite.average:
    if name not in tasks or tasks[name]["score"] is None:
      raise errors.GazeError(f"--average: {name} has no score here")
  scores = [tasks[name]["score"] for name in suite.average]
  mean = sum(scores) / len(scores)
  return {"average": {"of": list(suite.average), "score": mean}}


def _check_count(task: task_lib.Task, every: Sequence[task_lib.Item]) -> None:
  if len(every) != task.items:
    logging.warning(
      "%s: %d items, and the published set has %d",
      *(task.name, len(every), task.items),
    )


def _check_items(task: task_lib.Task, every: Iterable[task_lib.Item]) -> None:
  """Prompts and golds of all items, before any is asked.

  Raises:
    errors.GazeError: an item has none, as a cell is empty or of another kind.
  """
  for item in every:
    try:
      prompt_of(task, item)
      results_lib.verdict(task, item, "A", "default")
    except (TypeError, AttributeError, ValueError, KeyError) as error:
      cells = skipped.one_line(repr(item.fields))[:300]
      raise errors.GazeError(
        f"{task.name}: item {item.id!r} has no prompt or no gold"
        f" ({type(error).__name__}: {error}): {cells}"
      ) from None


def prompt_of(task: task_lib.Task, item: task_lib.Item) -> str:
  """The prompt, with dots for the subtitles, which depend on the frames."""
  return task.prompt(item.fields | {"subtitles": item.subtitles and "..."})


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
  model: Any,
  name: str,
  task: task_lib.Task,
  every: Sequence[task_lib.Item],
  suite: Suite,
  options: asking.Options,
) -> dict[str, Any]:
  """What a prediction depends on, fit for JSON."""
  _, files = task_lib.found(task, suite.data)
  folder = os.path.join(suite.data, task.folder)
  prompts = [prompt_of(task, item) for item in every]
  digest = hashlib.sha256("\0".join(prompts).encode("utf-8", "replace"))
  return {
    "model": name,
    "budget": {"top_k": options.top_k, "share": options.share},
    "regions": options.regions,
    "blind": options.blind,
    "frames": options.frames if task.video else None,
    "max_tokens": task.max_tokens,
    "decoding": "greedy",
    "batch_size": options.batch_size,
    "dtype": model.config.model.decoder.dtype,
    "system": task.system,
    "begins": task.begins,
    "prompt": prompts[0],
    "prompts_sha256": digest.hexdigest(),
    "files": {
      os.path.relpath(path, folder): _sha256(path)
      for some in files
      for path in some
    },
    "code": importlib.metadata.version("gaze_jax"),
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


def _done(
  out: pathlib.Path, task: task_lib.Task, made_by: dict[str, Any]
) -> set[str]:
  """Items that have a prediction, as process 0 knows them; for all of them.

  Raises:
    errors.GazeError: they were made by something else.
  """
  found: dict[str, Any] = {}
  if processes.is_first():
    try:
      predictions_lib.begin(out, task.name, made_by)
      found["done"] = sorted(predictions_lib.read(out, task.name))
    except errors.GazeError as error:
      found["error"] = str(error)
  found = json.loads(processes.share(json.dumps(found)) or "{}")
  if "error" in found:
    raise errors.GazeError(found["error"])
  return set(found["done"])


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
  first = processes.is_first()
  done = _done(out, task, made_by)
  by_id = {item.id: item for item in items}
  wanted = [item for item in items if item.id not in done]
  value, count = 0.0, 0
  answers = asking.ask(model, task, wanted, options)
  bar = tqdm.tqdm(
    total=len(items),
    initial=len(items) - len(wanted),
    desc=task.name,
    mininterval=1,
    disable=not first,
  )
  if not first:
    for _ in answers:
      pass
    return
  with predictions_lib.Writer(out, task.name) as writer, bar:
    for one in answers:
      writer.write(one)
      if not one.error:
        item = by_id[one.id]
        found = results_lib.verdict(task, item, one.text, suite.protocol)
        value += found.value
      count += 1
      bar.set_postfix_str(f"{100 * value / count:.1f} % so far")
      bar.update()
