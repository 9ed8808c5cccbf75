"""Stored predictions as lmms-eval asks for them: by task and document."""

import collections
import pathlib
import re
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
# Where a picture stands in a prompt, which the two write differently.
_PICTURE = re.compile(r"<image(?: \d)?>|image \d")


class Replay:
  """The predictions in an --out of launch/benchmark.py.

  A document has the prediction of its number among the files if the prompt is
  the same. Else it has that of its prompt, if one prediction alone has it: the
  two may read other files, in another order.

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
      errors.GazeError: there are no predictions of a task, or none that is
        certain to be of a document.
    """
    by_task = {
      task: self._read(task) for task in dict.fromkeys(one[4] for one in asked)
    }
    return [
      self._text(by_task[task], prompt, number, task)
      for prompt, _, _, number, task, _ in asked
    ]

  def _read(
    self, task: str
  ) -> tuple[dict[int, tuple[str, str]], dict[str, list[str]]]:
    """Prompt and text by place, and texts by prompt."""
    name = self._names.get(task, task)
    predictions_lib.settings(self._out, name)  # which says if there are none
    at: dict[int, tuple[str, str]] = {}
    of: dict[str, list[str]] = collections.defaultdict(list)
    for one in predictions_lib.read(self._out, name).values():
      prompt = plain(one.prompt)
      at[one.place] = prompt, one.text
      of[prompt].append(one.text)
    return at, of

  def _text(
    self,
    found: tuple[dict[int, tuple[str, str]], dict[str, list[str]]],
    prompt: str,
    number: int,
    task: str,
  ) -> str:
    at, of = found
    wanted = plain(prompt)
    known, text = at.get(number, ("", ""))
    if number in at and known == wanted:
      return text
    texts = of.get(wanted, [])
    if len(texts) != 1:
      why = "several have it, in other files" if texts else "none has it"
      raise errors.GazeError(
        f"{self._out}: {task}, document {number}: no prediction is certain to"
        f" be of it. Its prompt begins with {prompt[:80]!r}, and {why}"
      )
    return texts[0]


def plain(prompt: str) -> str:
  """A prompt without the places of its pictures."""
  return _PICTURE.sub("", prompt)
