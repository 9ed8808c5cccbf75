"""What an answer leaves on disk: pictures, a page, numbers."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

from gaze_jax import errors
from gaze_jax.api import answer as answer_lib
from gaze_jax.api import model as model_lib
from gaze_jax.decode import accounting
from gaze_jax.view import overlay
from gaze_jax.view import viewer
from gaze_jax.view import words


@dataclasses.dataclass(frozen=True)
class Outputs:
  """Files to write; those that are not named are not written.

  Attributes:
    picture: a .png, .jpg ...: the image once a word.
    animation: a .gif or .webp: a frame a word.
    html: the viewer.
    json: the answer and its accounting.
    layers: which layers are drawn in pictures; None for all.
    heads: which query heads; None for all.
  """

  picture: str | None = None
  animation: str | None = None
  html: str | None = None
  json: str | None = None
  layers: Sequence[int] | None = None
  heads: Sequence[int] | None = None

  def check_names(self) -> None:
    """Refuses names that nothing can be written under, before any work.

    Raises:
      errors.GazeError: a wrong ending, or there is no such folder.
    """
    if self.picture:
      overlay.check_name(self.picture)
    if self.animation:
      overlay.check_name(self.animation, animation=True)
    if self.html:
      viewer.check_name(self.html)
    if self.json:
      errors.check_folder(self.json)

  def check_model(self, model: model_lib.Model) -> None:
    """Refuses layers and heads that a model does not have.

    Raises:
      errors.GazeError: naming them.
    """
    decoder = model.config.model.decoder
    words.within(self.layers, decoder.depth, "layer")
    words.within(self.heads, decoder.query_heads, "head")

  def write(
    self, answer: answer_lib.Answer, account: accounting.Accounting
  ) -> list[str]:
    """Writes the files; returns their names."""
    which = dict(layers=self.layers, heads=self.heads)
    if self.picture:
      answer.picture(**which).save(self.picture)
    if self.animation:
      overlay.save_animation(answer.animation(**which), self.animation)
    if self.html:
      _write(self.html, answer.page(account))
    if self.json:
      _write(self.json, json.dumps(answer.as_dict(account), indent=1) + "\n")
    names = (self.picture, self.animation, self.html, self.json)
    return [name for name in names if name]


def _write(path: str, text: str) -> None:
  pathlib.Path(path).write_text(text, encoding="utf-8")
