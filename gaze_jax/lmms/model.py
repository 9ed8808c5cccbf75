"""lmms-eval's interface to a model: answers made now, or stored before."""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from lmms_eval.api import model as lmms_model
from PIL import Image

from gaze_jax import api
from gaze_jax import errors
from gaze_jax.data import skipped
from gaze_jax.lmms import replay as replay_lib
from gaze_jax.tasks import asking

_TOKENS = 16  # of an answer, where a task does not say
_KNOWN = {
  *("max_new_tokens", "until", "temperature", "top_p", "do_sample"),
  *("num_beams", "image_aspect_ratio"),
}


class GazeJax(lmms_model.lmms):
  """A model of any directory that `api.load` takes, or predictions of one.

  Args:
    pretrained: the directory.
    predictions: in its place, an --out of launch/benchmark.py whose answers are
      given again: those of a run on many hosts, scored by lmms-eval.
    names: of tasks in `predictions` that have another in lmms-eval and are not
      among those that are known, as "theirs:ours;theirs:ours".
    top_k: as in `api.Request`.
    share: likewise.
    frames: of a video.
    dtype: as in `api.load`.
    parallel_fsdp: devices, as --parallel.fsdp.
    parallel_tensor: likewise.
    batch_size: rows that are decoded together.
    device: must be that of JAX, and is ignored.
    max_batch_size: likewise.
    **unknown: refused.

  Raises:
    errors.GazeError: neither or both of the first two, something unknown, or
      there is no model.
  """

  is_simple = True

  def __init__(
    self,
    pretrained: str = "",
    *,
    predictions: str = "",
    names: str = "",
    top_k: int | None = None,
    share: float | None = None,
    frames: int = 32,
    dtype: str | None = None,
    parallel_fsdp: int | None = None,
    parallel_tensor: int | None = None,
    batch_size: int | str = 1,
    device: str | None = None,
    max_batch_size: int | None = None,
    **unknown: Any,
  ):
    super().__init__()
    del device, max_batch_size
    if unknown:
      raise errors.GazeError(f"--model_args: no {', '.join(sorted(unknown))}")
    if bool(pretrained) == bool(predictions):
      raise errors.GazeError(
        "--model_args: give pretrained=DIR, or predictions=DIR of"
        " launch/benchmark.py"
      )
    self._replay = self._model = None
    if predictions:
      out = pathlib.Path(predictions)
      self._replay = replay_lib.Replay(out, _pairs(names))
      return
    axes = {"fsdp": parallel_fsdp, "tensor": parallel_tensor}
    axes = {name: size for name, size in axes.items() if size is not None}
    self._model = api.load(pretrained, parallel=axes or None, dtype=dtype)
    self._budget = {"top_k": top_k, "share": share}
    if not str(batch_size).isdecimal():
      raise errors.GazeError(f"--batch_size={batch_size}: give a whole number")
    self._frames, self._batch_size = frames, int(batch_size)
    # Questions about one video follow each other.
    self._clip = functools.lru_cache(maxsize=1)(asking.read_video)

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Answers in the order of the requests, cut where `until` says."""
    if self._replay is not None:
      texts = self._replay.texts([one.args for one in requests])
    else:
      texts = self._answers(requests)
    return [
      cut(text, until(one.args[1]))
      for one, text in zip(requests, texts, strict=True)
    ]

  def loglikelihood(self, requests: Sequence[Any]) -> list:
    raise NotImplementedError(
      "gaze_jax gives texts and no likelihoods: take the task's variant that"
      " generates"
    )

  def generate_until_multi_round(self, requests: Sequence[Any]) -> list:
    raise NotImplementedError(
      "gaze_jax answers one round of a task: take its variant of one round"
    )

  def _answers(self, requests: Sequence[Any]) -> list[str]:
    """Texts in the order of the requests; "" of what can't be asked."""
    texts, asked = [""] * len(requests), []

    def refuse(number: int, error: Exception) -> None:
      logging.warning("request %d has no answer: %s", asked[number], error)

    def each() -> Iterator[api.Request]:
      for number, one in enumerate(requests):
        try:
          request = self._request(one)
        except (errors.GazeError, skipped.SkipError) as error:
          logging.warning("request %d has no answer: %s", number, error)
          continue
        asked.append(number)
        yield request

    for number, answer in self._model.generate_as_completed(
      each(), batch_size=self._batch_size, progress=True, on_error=refuse
    ):
      place = asked[number]
      context, options = requests[place].args[:2]
      texts[place] = answer.text
      text = cut(answer.text, until(options))
      self.cache_hook.add_partial("generate_until", (context, options), text)
    return texts

  def _request(self, one: Any) -> api.Request:
    context, options, doc_to_visual, doc_id, task, split = one.args
    _warn_unknown(options)
    visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
    shown = list(_flat(visuals))
    images = [x for x in shown if isinstance(x, Image.Image)]
    paths = [x for x in shown if isinstance(x, (str, os.PathLike))]
    if len(images) + len(paths) < len(shown):
      raise errors.GazeError(
        f"{task}: what it shows is no picture and no video"
      )
    limit = self._model.config.data.max_pixels
    drawn = options.get("do_sample", True) and options.get("temperature")
    return api.Request(
      context,
      images=[np.asarray(x.convert("RGB")) for x in images],
      videos=[
        self._clip(os.fspath(path), self._frames, limit).frames
        for path in paths
      ],
      max_tokens=int(options.get("max_new_tokens") or _TOKENS),
      stop=until(options),
      temperature=float(drawn or 0),
      top_p=float(options.get("top_p") or 1),
      **self._budget,
    )


def _pairs(names: str) -> dict[str, str]:
  """The names of "theirs:ours;theirs:ours"."""
  pairs = [pair.split(":") for pair in names.split(";") if pair]
  if any(len(pair) != 2 for pair in pairs):
    raise errors.GazeError(
      f"--model_args: names={names}: give theirs:ours;theirs:ours"
    )
  return dict(pairs)


def until(options: Mapping[str, Any]) -> tuple[str, ...]:
  """The strings that end an answer; an empty one ends none."""
  given = options.get("until") or ()
  given = (given,) if isinstance(given, str) else given
  return tuple(text for text in given if text)


def cut(text: str, stops: Sequence[str]) -> str:
  """A text up to the first of some strings."""
  ends = [at for stop in stops if (at := text.find(stop)) >= 0]
  return text[: min(ends)] if ends else text


def _flat(visuals: Any) -> Iterator[Any]:
  for one in visuals:
    if isinstance(one, (list, tuple)):
      yield from _flat(one)
    else:
      yield one


def _warn_unknown(options: Mapping[str, Any]) -> None:
  """Says once what a task asks for and is not done."""
  if options.get("num_beams", 1) not in (None, 1):
    logging.log_first_n(
      logging.WARNING,
      "num_beams = %s: beams are not searched",
      1,
      options["num_beams"],
    )
  if more := options.keys() - _KNOWN:
    logging.log_first_n(
      logging.WARNING, "not known, and left out: %s", 1, ", ".join(sorted(more))
    )
