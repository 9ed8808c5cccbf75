"""A conversation in a terminal: lines in, answers out as they come."""

import json
import pathlib
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gaze_jax import errors
from gaze_jax.api import answer as answer_lib
from gaze_jax.api import model as model_lib
from gaze_jax.api import request as request_lib
from gaze_jax.api import saved_context
from gaze_jax.data import images
from gaze_jax.data import video
from gaze_jax.decode import context as context_lib
from gaze_jax.view import viewer

HELP = """\
/image FILE ...  shows images with the next question
/video FILE      shows a video with the next question
/top_k K         reads K regions from now on; /share 0.25 a share of them
/cost [FILE]     what the last answer cost; FILE as JSON
/html FILE       where the last answer looked, as a page
/keep DIR        keeps the conversation on disk; /load DIR takes one up
/new             forgets everything
/quit            ends (as does Ctrl-D); Ctrl-C ends an answer"""


class Chat:
  """One conversation.

  Args:
    model: what answers.
    write: prints a piece of text.
    options: of every question, as in `Request`.
    afresh: whether each question is asked after the images alone, as models
      are used that were not trained on conversations.
    interruptible: a context manager made of what stops an answer.
    writes: whether it writes files; of several processes one does.
  """

  def __init__(
    self,
    model: model_lib.Model,
    write: Callable[[str], None],
    options: dict[str, Any],
    interruptible: Callable[..., Any],
    *,
    afresh: bool = False,
    writes: bool = True,
  ):
    self._model, self._write = model, write
    self._options, self._interruptible = dict(options), interruptible
    self._afresh, self._writes = afresh, writes
    self._context: context_lib.Context | None = None
    self._last: answer_lib.Answer | None = None
    self._shown: dict[str, list[Any]] = dict(images=[], videos=[])
    self._commands = dict(
      image=lambda *files: self.show_images(files),
      video=lambda *files: self._show("videos", files),
      top_k=self._top_k,
      share=self._share,
      cost=self._cost,
      html=self._html,
      keep=self._keep,
      load=self._load,
      new=self._new,
      help=lambda: self._write(HELP + "\n"),
    )

  def run(self, lines: Iterable[str]) -> None:
    """Answers line by line, until there are no more or one says /quit.

    What can't be done is one line of error, and nothing changes.
    """
    for line in lines:
      line = line.strip()
      if line in ("/quit", "/exit"):
        return
      try:
        if line.startswith("/"):
          self._command(line[1:])
        elif line:
          self._ask(line)
      except errors.GazeError as error:
        self._write(f"error: {error}\n")
      except OSError as error:
        self._write(f"error: {error.filename}: {error.strerror or error}\n")

  def show_images(self, files: Sequence[str]) -> None:
    """Shows images with the next question.

    Raises:
      errors.GazeError: one can't be used.
    """
    self._show("images", files)

  def _ask(self, question: str) -> None:
    if self._afresh and any(self._shown.values()):
      self._context = self._model.encode(**self._shown)
      self._shown = dict(images=[], videos=[])
    stream = self._model.stream(
      question, self._context, trace=True, **self._shown, **self._options
    )
    with self._interruptible(stream.stop):
      for text in stream:
        self._write(text)
    answer = stream.answer
    ended = "" if answer.reason == "stop" else f"  [{answer.reason}]"
    self._write(f"{ended}\n")
    self._last = answer
    if not self._afresh:
      self._context = answer.context
    self._shown = dict(images=[], videos=[])

  def _command(self, line: str) -> None:
    try:
      name, *words = shlex.split(line) or [""]
    except ValueError as error:
      raise errors.GazeError(f"/{line}: {error}") from None
    if name not in self._commands:
      raise errors.GazeError(f"/{name} is no command; /help lists them")
    try:
      self._commands[name](*words)
    except TypeError:
      raise errors.GazeError(
        f"/{name} takes other words; /help says which"
      ) from None

  def _show(self, kind: str, files: Sequence[str]) -> None:
    """Reads files at once, so that a broken one is refused here."""
    limit = self._model.config.data.max_pixels
    frames = self._options.get("frames", request_lib.Request.frames)
    if kind == "images":
      read = [images.decode(file, limit) for file in files]
    else:
      taken = video.Sampling(frames, self._model.config.data.fps)
      read = [video.read(file, taken, limit) for file in files]
    self._shown[kind] = [*self._shown[kind], *read]

  def _top_k(self, value: str) -> None:
    self._change(top_k=_number(value, int), share=None)

  def _share(self, value: str) -> None:
    self._change(top_k=None, share=_number(value, float))

  def _change(self, **options: Any) -> None:
    changed = self._options | options
    request_lib.Request("?", **changed).check()
    self._options = changed

  def _cost(self, file: str = "") -> None:
    last = self._answered()
    account = last.accounting()
    if file:
      text = json.dumps(last.as_dict(account), indent=1) + "\n"
      self._write_file(file, text)
    else:
      self._write(account.text() + "\n")

  def _html(self, file: str) -> None:
    viewer.check_name(file)
    last = self._answered()
    page = last.page(last.accounting())
    self._write_file(file, page)

  def _write_file(self, file: str, text: str) -> None:
    if self._writes:
      pathlib.Path(file).write_text(text, encoding="utf-8")

  def _keep(self, directory: str) -> None:
    saved_context.save_context(self._answered().context, self._model, directory)

  def _load(self, directory: str) -> None:
    self._context = saved_context.load_context(directory, self._model)
    self._last = None

  def _new(self) -> None:
    self._context = self._last = None
    self._shown = dict(images=[], videos=[])

  def _answered(self) -> answer_lib.Answer:
    if self._last is None:
      raise errors.GazeError("nothing was answered yet; ask something first")
    return self._last


def _number(text: str, kind: type) -> Any:
  try:
    return kind(text)
  except ValueError:
    raise errors.GazeError(f"{text}: give a number") from None
