"""Stored predictions as lmms-eval asks for them: by task and prompt."""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gaze_jax import errors
from gaze_jax.tasks import predictions as predictions_lib

# lmms-eval's names of tasks that have another here.
_NAMES = {
  "textvqa_val": "textvqa",
  "mathvista_testmini_format": "mathvista_format",
  "mathvista_testmini_cot": "mathvista_cot",
  "videomme_w_subtitle": "videomme_sub",
  "longvideobench_val_v": "longvideobench_val",
  "nextqa_mc_test": "nextqa_mc_lmms",
  "mmbench_en_dev_static": "mmbench_en_dev",
  "seedbench": "seed",
}


class Replay:
  """The predictions in an --out of launch/benchmark.py.

  A document has the prediction of the same prompt; of several with the same
  prompt, in the order of the files, which lmms-eval reads as well.

  Args:
    out: the folder.
    names: of tasks here, by lmms-eval's, beside those that are known.
  """

  def __init__(self, out: pathlib.Path, names: Mapping[str, str]):
    self._out, self._names = out, _NAMES | dict(names)

  def texts(self, asked: Sequence[tuple[Any, ...]]) -> list[str]:
    """The answer to each request.

    Args:
      asked: arguments of requests: (prompt, options, function, number of the
        document, task, split).

    Raises:
      errors.GazeError: a document has no prediction of its prompt.
    """
    found: dict[tuple[str, int], str] = {}
    for task in dict.fromkeys(one[4] for one in asked):
      waiting = self._by_prompt(task)
      of_task = sorted((one[3], one[0]) for one in asked if one[4] == task)
      for number, prompt in of_task:
        if not waiting[prompt]:
          raise errors.GazeError(
            f"{self._out}: no prediction of {task}, document {number}, whose"
            f" prompt begins with {prompt[:80]!r}: it was asked otherwise, or"
            " not at all"
          )
        found[task, number] = waiting[prompt].popleft()
    return [found[one[4], one[3]] for one in asked]

  def _by_prompt(self, task: str) -> dict[str, collections.deque[str]]:
    """Texts of a task by prompt, in the order of the files."""
    name = self._names.get(task, task)
    every = predictions_lib.read(self._out, name).values()
    out: dict[str, collections.deque[str]]
    out = collections.defaultdict(collections.deque)
    for one in sorted(every, key=lambda one: one.place):
      out[one.prompt].append(one.text)
    return out
