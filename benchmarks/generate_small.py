"""Times a small model end to end: ours dense, with gaze, and transformers.

python benchmarks/generate_small.py [--images=8] [--new_tokens=32]
    [--rounds=3] [--json=FILE]

One random LLaVA-1.5 (`small_model`), written as a checkpoint and read by both
sides, float32. Both get the same pictures and questions; before anything is
timed, token ids and pixels must be the same, and afterwards our dense greedy
texts must be those of transformers. Every method answers both questions before
it is timed, so that neither compiling nor starting threads counts. In a round
each method answers in turn; of a time the least over the rounds is kept:

  first question    from pictures and text to the first token: pixels, tower,
                    prompt, sampling
  second question   another question about the same pictures. Ours forks the
                    context of the first. transformers' `generate` keeps none
                    from call to call and reads all again; the row of a kept
                    cache copies one that its user filled with the pictures
  tokens a second   of the tokens after the first, as they are streamed

Gaze reads a tenth of the regions. The weights are random, so that its texts
differ from the dense ones says nothing about a trained model.
"""

import copy
import dataclasses
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import small_model
from benchmarks import timing
from gaze_jax import api
from gaze_jax import cli
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.api import conversation
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.models import vision

QUESTIONS = ("what is at the top left?", "where is the red fox?")
ROUTED = 0.1  # share of the regions
_SHORT = 3  # second questions a round, where they are short
_PIXELS = 1e-5  # rounding of pixels

# Names of methods.
_THEIRS, _KEPT, _DENSE = "transformers", "transformers_kept_cache", "dense"
_GAZE = ("query_head", "kv_group")


@dataclasses.dataclass(frozen=True)
class Timed:
  """One answer.

  Attributes:
    first: seconds to its first token.
    rest: seconds from there to its last.
    tokens: ids.
  """

  first: float
  rest: float
  tokens: tuple[int, ...]


class Ours:
  """Our model; `ask` streams, as a program that shows an answer would."""

  def __init__(
    self, model: api.Model, images: Sequence[Image.Image], **options
  ):
    self._model, self._images, self._options = model, images, options
    self._context = None

  def first(self) -> Timed:
    """Reads the pictures and answers the first question."""
    start = time.perf_counter()
    self._context = self._model.encode_image(*self._images)
    return self._ask(0, start)

  def second(self) -> Timed:
    """Answers the second question with what `first` read."""
    return self._ask(1, time.perf_counter())

  def _ask(self, number: int, start: float) -> Timed:
    stream = self._model.stream(
      QUESTIONS[number], self._context, **self._options
    )  # has the first token
    first = time.perf_counter()
    for _ in stream:
      pass
    last = time.perf_counter()
    return Timed(first - start, last - first, stream.answer.tokens)


class Theirs:
  """transformers' `generate`, greedy, with a streamer that looks at the clock.

  Args:
    model: theirs.
    processor: theirs.
    images: the pictures.
    new_tokens: of an answer.
    keeps: whether its user keeps a cache of the pictures, as transformers'
      documentation of caches does it: filled once, copied for each question.
  """

  def __init__(
    self,
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    new_tokens: int,
    *,
    keeps: bool,
  ):
    self._model, self._processor, self._images = model, processor, images
    self._new_tokens, self._keeps = new_tokens, keeps
    self._cache = self._seen = None

  def first(self) -> Timed:
    start = time.perf_counter()
    if self._keeps:
      self._fill()
    return self._ask(0, start)

  def second(self) -> Timed:
    return self._ask(1, time.perf_counter())

  def _fill(self) -> None:
    self._seen = self._read(small_model.beginning(len(self._images)))
    cache = small_model.transformers.DynamicCache(config=self._model.config)
    with small_model.torch.inference_mode():
      self._model(**self._seen, past_key_values=cache, logits_to_keep=1)
    self._cache = cache

  def _read(self, text: str) -> Any:
    return self._processor(text=text, images=self._images, return_tensors="pt")

  def _ask(self, number: int, start: float) -> Timed:
    question = small_model.turn(QUESTIONS[number])
    if self._keeps:
      ids = self._processor.tokenizer(question, return_tensors="pt").input_ids
      ids = small_model.torch.cat([self._seen["input_ids"], ids], dim=1)
      inputs = dict(
        input_ids=ids,
        attention_mask=small_model.torch.ones_like(ids),
        past_key_values=copy.deepcopy(self._cache),
      )
    else:
      text = small_model.beginning(len(self._images)) + question
      inputs = self._read(text)
    clock = _Clock()
    with small_model.torch.inference_mode():
      out = self._model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=self._new_tokens,
        streamer=clock,
      )
    _, first, *rest = clock.times  # the prompt is put first
    tokens = out[0, inputs["input_ids"].shape[1] :].tolist()
    return Timed(first - start, [first, *rest][-1] - first, tuple(tokens))


class _Clock:
  """When each token came; what `generate` takes for a streamer."""

  def __init__(self):
    self.times = []

  def put(self, value: Any) -> None:
    del value
    self.times.append(time.perf_counter())

  def end(self) -> None:
    pass


def run(
  *,
  rounds: int = 3,
  new_tokens: int = 32,
  images: int = 8,
  shape: small_model.Shape = small_model.Shape(),  # noqa: B008
) -> list[dict[str, Any]]:
  """Measures all methods; see the top of this file.

  Args:
    rounds: at least one.
    new_tokens: of an answer, at least two.
    images: of 576 visual tokens each.
    shape: of the model.

  Returns:
    A row for each method, of plain numbers and texts.

  Raises:
    errors.GazeError: PyTorch or transformers is not installed, or our inputs
      or our dense texts are not those of transformers.
  """
  small_model.check_installed()
  small_model.torch.set_num_threads(os.cpu_count())
  pictures = small_model.pictures(images)
  with tempfile.TemporaryDirectory() as folder:
    small_model.write(pathlib.Path(folder), shape)
    model = api.load(folder)
    theirs, processor = small_model.load(pathlib.Path(folder), shape)
    check_inputs(model, processor, pictures)
    methods = _methods(model, theirs, processor, pictures, new_tokens)
    timed = _in_turns(methods, rounds)
  _check_texts(timed)
  visual = images * shape.tokens
  return [_row(name, timed, visual, new_tokens) for name in methods]


def check_inputs(
  model: api.Model, processor: Any, pictures: Sequence[Image.Image]
) -> None:
  """Holds our token ids and pixels to those of transformers.

  Raises:
    errors.GazeError: naming what differs.
  """
  image = tokenizer_lib.SPECIAL.index(tokenizer_lib.IMAGE)
  text = small_model.beginning(len(pictures))
  for question in QUESTIONS:
    inputs = processor(
      text=text + small_model.turn(question),
      images=pictures,
      return_tensors="pt",
    )
    request = api.Request(question, images=pictures)
    _, batch = conversation.next_turn(request, model.config, model.tokenizer)
    role = batch.layout.role[0]
    ids = np.where(role == types.Role.VISUAL, image, batch.tokens[0])
    ids = ids[role != types.Role.PAD].tolist()
    if ids != inputs["input_ids"][0].tolist():
      raise errors.GazeError(f"other token ids than transformers: {question}")
    want = inputs["pixel_values"].numpy().transpose(0, 2, 3, 1)
    settings = model.config.model.vision
    got = np.asarray(vision.normalise(batch.images[0], settings))
    if got.shape != want.shape or not np.abs(got - want).max() < _PIXELS:
      raise errors.GazeError("other pixels than transformers")


def _methods(
  model: api.Model,
  theirs: Any,
  processor: Any,
  pictures: Sequence[Image.Image],
  new_tokens: int,
) -> dict[str, Ours | Theirs]:
  """By name, in the order of a round."""
  methods = {
    name: Theirs(theirs, processor, pictures, new_tokens, keeps=keeps)
    for name, keeps in ((_THEIRS, False), (_KEPT, True))
  }
  methods[_DENSE] = Ours(model, pictures, max_tokens=new_tokens)
  for granularity in _GAZE:
    methods[f"gaze_{granularity}"] = Ours(
      routed(model, granularity),
      pictures,
      max_tokens=new_tokens,
      share=ROUTED,
    )
  return methods


def routed(model: api.Model, granularity: str) -> api.Model:
  """The same weights, with regions chosen in another way."""
  inner = model.config.model
  gaze = dataclasses.replace(inner.gaze, granularity=granularity)
  inner = dataclasses.replace(inner, gaze=gaze)
  config = dataclasses.replace(model.config, model=inner)
  return dataclasses.replace(model, config=config)


def _in_turns(
  methods: dict[str, Ours | Theirs], rounds: int
) -> dict[str, list[list[Timed]]]:
  """Answers to the first and to the second question, by method."""
  for method in methods.values():
    method.first()
    method.second()
  timed = {name: [[], []] for name in methods}
  for _ in range(rounds):
    for name, method in methods.items():
      timed[name][0].append(method.first())
      for _ in range(1 if name == _THEIRS else _SHORT):
        timed[name][1].append(method.second())
  return timed


def _check_texts(timed: dict[str, list[list[Timed]]]) -> None:
  """Every dense text must be that of transformers, in every round."""
  for name in (_THEIRS, _KEPT, _DENSE):
    for question, want, answers in zip(
      QUESTIONS, timed[_THEIRS], timed[name], strict=True
    ):
      if off := [a for a in answers if a.tokens != want[0].tokens]:
        raise errors.GazeError(
          f"{name}: another greedy text than transformers: {question}"
          f" {list(off[0].tokens)}, and not {list(want[0].tokens)}"
        )


def _row(
  name: str, timed: dict[str, list[list[Timed]]], visual: int, new_tokens: int
) -> dict[str, Any]:
  least = lambda answers, part: min(getattr(a, part) for a in answers)
  first, second = timed[name]
  rest = least([*first, *second], "rest")
  differ = sum(
    a != b
    for ours, theirs in zip(timed[name], timed[_THEIRS], strict=True)
    for a, b in zip(ours[0].tokens, theirs[0].tokens, strict=True)
  )
  return dict(
    method=name,
    visual_tokens=visual,
    new_tokens=new_tokens,
    ttft_first_seconds=least(first, "first"),
    ttft_second_seconds=least(second, "first"),
    second_sooner=least(first, "first") / least(second, "first"),
    tokens_per_second=(new_tokens - 1) / rest,
    same_text=not differ,
    tokens_that_differ=differ,
    tokens_compared=2 * new_tokens,
    rounds=len(first),
  )


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The rows as text."""
  out = [
    f"A small model end to end, {rows[0]['visual_tokens']} visual tokens,"
    f" {rows[0]['new_tokens']} new ones, least of {rows[0]['rounds']} rounds",
    "method                    first s  second s  sooner  tokens/s  same text",
  ]
  for row in rows:
    same = "yes"
    if not row["same_text"]:
      same = f"{row['tokens_that_differ']}/{row['tokens_compared']} differ"
    out.append(
      f"{row['method']:24s} {row['ttft_first_seconds']:8.3f}"
      f" {row['ttft_second_seconds']:9.4f} {row['second_sooner']:6.1f}x"
      f" {row['tokens_per_second']:9.1f}  {same}"
    )
  return "\n".join(out)


def _define_flags() -> dict[str, flags.FlagHolder]:
  """Here, as another benchmark may have flags of these names."""
  integer = flags.DEFINE_integer
  return dict(
    images=integer("images", 8, "of 576 visual tokens", 1),
    new_tokens=integer("new_tokens", 32, "of an answer", 2),
    rounds=integer("rounds", 3, "calls of each method", 1),
    json=cli.define_file("json", "a file for the rows"),
  )


def _main(given: dict[str, flags.FlagHolder]) -> None:
  values = {name: flag.value for name, flag in given.items()}
  file = values.pop("json")
  rows = run(**values)
  print(table(rows))
  timing.write_json(file, dict(rows=rows, **timing.machine()))


if __name__ == "__main__":
  options = _define_flags()
  cli.main(lambda: _main(options))
