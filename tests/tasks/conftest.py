"""A model that answers by rule, and a task of a few items about pictures."""

import collections
import contextlib
import dataclasses
import json
import types

import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax import errors
from gaze_jax.data import messages
from gaze_jax.tasks import registry

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


@dataclasses.dataclass
class Scripted:
  """Stands in for an `api.Model`: names the colour of what it is shown.

  Attributes:
    dies_at: raises KeyboardInterrupt in place of an answer after so many.
    refused: questions that it refuses.
    asked: every request so far.
  """

  config: object
  dies_at: int | None = None
  refused: tuple[str, ...] = ()
  asked: list = dataclasses.field(default_factory=list)
  encoded: list = dataclasses.field(default_factory=list)
  most_cache_bytes: int = 2**20

  @property
  def tokenizer(self):
    return types.SimpleNamespace(fingerprint=lambda: "a tokenizer")

  def on_mesh(self):
    return contextlib.nullcontext()

  def generate_as_completed(self, requests, *, batch_size, on_error):
    waiting = collections.deque()  # requests are taken ahead, as a pool does
    for number, request in enumerate(requests):
      if request.question in self.refused:
        on_error(number, errors.GazeError("too long by far"))
        continue
      waiting.append((number, request))
      if len(waiting) > batch_size:
        yield self._next(waiting)
    while waiting:
      yield self._next(waiting)

  def encode(self, *, images=(), videos=(), system=None):
    """A context that shows what it was given; `_answer` looks there too."""
    self.encoded.append((len(images), len(videos), system))
    shown = [*images, *(f for v in videos for f in v)]
    talk = (messages.Message("user", tuple(map(name, shown))),)
    return api.Context(None, sizes=(36,) * len(shown), talk=talk)

  def _next(self, waiting):
    if len(self.asked) == self.dies_at:
      raise KeyboardInterrupt
    waiting.rotate(1 if len(self.asked) % 3 else 0)  # and end in any order
    number, request = waiting.popleft()
    self.asked.append(request)
    return number, self._answer(request)

  def _answer(self, request):
    shown = [*request.images, *(f for v in request.videos for f in v)]
    shown = list(map(name, shown))
    if request.after:
      shown = [*request.after.talk[0].parts]
    text = ", ".join(shown) or "nothing"
    return api.Answer(
      question=request.question,
      text=f" {text}\n",
      reason="stop",
      tokens=(1, 2),
      context=api.Context(
        None, sizes=(36,) * len(shown), units=(1,) * len(shown)
      ),
      budget=1,
      entries=(9.0, 12.0),
      steps=(),
      model=self,
    )


def name(pixels):
  """The colour of a picture's first pixel."""
  far = lambda colour: sum(
    abs(int(a) - b) for a, b in zip(pixels[0, 0], colour, strict=True)
  )
  return min(COLOURS, key=lambda key: far(COLOURS[key]))


@pytest.fixture
def scripted(tiny_config, monkeypatch):
  monkeypatch.setattr("gaze_jax.api.identity.of", lambda model: "a model")
  return lambda **how: Scripted(tiny_config(), **how)


@pytest.fixture
def gqa(tmp_path):
  """Six questions about three pictures, of which the gold of one is wrong."""
  folder = tmp_path / "data" / "gqa"
  (folder / "images").mkdir(parents=True)
  questions = {}
  for number, colour in enumerate(["red", "green", "blue", "red"] * 2):
    if number in (3, 7):
      continue
    Image.new("RGB", (8, 8), COLOURS[colour]).save(
      folder / "images" / f"{colour}.jpg", quality=95
    )
    gold = "pink" if number == 1 else colour
    questions[f"q{number}"] = dict(
      imageId=colour, question=f"Which colour is {number}?", answer=gold
    )
  path = folder / "testdev_balanced_questions.json"
  path.write_text(json.dumps(questions))
  task = dataclasses.replace(registry.TASKS["gqa"], items=len(questions))
  return task, str(tmp_path / "data")
