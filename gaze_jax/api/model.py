"""A model that answers."""

import dataclasses
import hashlib
import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax

from gaze_jax import errors
from gaze_jax.api import answer as answer_lib
from gaze_jax.api import ask as ask_lib
from gaze_jax.api import turns
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import engine
from gaze_jax.decode import reading
from gaze_jax.decode import sampling
from gaze_jax.evals import weights
from gaze_jax.models import decoder

# Tokens between two looks for stop strings.
_SEGMENT = 16


@dataclasses.dataclass(frozen=True)
class Model(answer_lib.Asked):
  """A model, ready for questions; make one with `load`.

  Attributes:
    config: its config.
    params: float32 parameters, a nested dict.
    tokenizer: its tokenizer and chat format.
    limits: what a conversation may hold.
  """

  limits: context_lib.Limits = context_lib.Limits()

  def encode_image(self, *images: ask_lib.Picture) -> context_lib.Context:
    """Reads images once, for any number of questions about them.

    Args:
      *images: files, bytes, uint8 [height, width, 3], or images of PIL.

    Raises:
      errors.GazeError: an image can't be used, or there are too many.
    """
    return self.encode(images=images)

  def encode_video(
    self, video: ask_lib.Video, *, frames: int = 8
  ) -> context_lib.Context:
    """Reads a video once.

    Args:
      video: a file, or its frames.
      frames: how many are taken of a file, evenly spaced.

    Raises:
      errors.GazeError: it can't be used, or there are too many frames.
    """
    return self.encode(videos=(video,), frames=frames)

  def encode(
    self,
    *,
    images: Sequence[ask_lib.Picture] = (),
    videos: Sequence[ask_lib.Video] = (),
    frames: int = 8,
    system: str | None = None,
  ) -> context_lib.Context:
    """Reads images, then videos, once; as `encode_image` and `encode_video`.

    Args:
      images: as in `encode_image`.
      videos: as in `encode_video`.
      frames: likewise, of each.
      system: as in `Ask`.

    Raises:
      errors.GazeError: one can't be used, or there are too many.
    """
    self._check_sees()
    prepared = ask_lib.prepare_units(
      self.config, self.tokenizer, images, videos, frames, system
    )
    return reading.read(
      self.params,
      self.config.model,
      self._before(prepared),
      prepared.batch,
      0,  # nothing here is routed
      views=prepared.views,
      limits=self.limits,
    ).context

  def generate(
    self,
    question: str,
    after: context_lib.Context | None = None,
    *,
    trace: bool = False,
    **options: Any,
  ) -> answer_lib.Answer:
    """Answers one question.

    Args:
      question: as in `Ask`.
      after: likewise.
      trace: whether to record where each token looked, for pictures.
      **options: the other fields of `Ask`.

    Raises:
      errors.GazeError: the question can't be asked so; nothing is lost.
    """
    ask = ask_lib.Ask(question, after, **options)
    return self.generate_batch([ask], trace=trace)[0]

  def generate_batch(
    self, asks: Sequence[ask_lib.Ask], *, trace: bool = False
  ) -> list[answer_lib.Answer]:
    """Answers questions together; each answer is what it is alone.

    Args:
      asks: one or more, of any mix.
      trace: as in `generate`.

    Raises:
      errors.GazeError: one of them can't be asked so.
    """
    rows = self._read(asks, trace)
    decoding = self._decode(rows, trace)
    texts = [answer_lib.Text(self.tokenizer, a.stop) for a in asks]
    while True:
      for row, text in enumerate(texts):
        text.read(decoding.tokens(row))
        if text.stopped and not decoding.ended(row):
          decoding.end(row)
      if decoding.done:
        break
      if trace:
        decoding.step()
      else:
        waits = any(a.stop for a in asks)
        longest = max(a.max_tokens for a in asks)
        decoding.run(_SEGMENT if waits else longest)
    return [
      answer_lib.finish(
        self, asks[i].question, i, decoding, texts[i], rows[i].budget
      )
      for i in range(len(asks))
    ]

  def stream(
    self,
    question: str,
    after: context_lib.Context | None = None,
    *,
    trace: bool = False,
    **options: Any,
  ) -> answer_lib.Stream:
    """As `generate`, token by token; `Stream.answer` is the answer.

    Raises:
      errors.GazeError: the question can't be asked so.
    """
    ask = ask_lib.Ask(question, after, **options)
    rows = self._read([ask], trace)
    return answer_lib.Stream(
      self, question, self._decode(rows, trace), ask.stop, rows[0].budget
    )

  def _read(self, asks: Sequence[ask_lib.Ask], trace: bool) -> list[engine.Row]:
    """Prompts read, each on its own, so that no row depends on another."""
    if not asks:
      raise turns.AskError("nothing is asked")
    for ask in asks:
      ask_lib.check(ask)
      sampling.make(1, **_sampling(ask))
    prepared = []
    for ask in asks:
      if ask.images or ask.videos:
        self._check_sees()
      prepared.append(ask_lib.prepare(ask, self.config, self.tokenizer))
    return [
      self._row(ask, p, trace) for ask, p in zip(asks, prepared, strict=True)
    ]

  def _row(
    self, ask: ask_lib.Ask, prepared: ask_lib.Prepared, trace: bool
  ) -> engine.Row:
    model = self.config.model
    before = self._before(prepared)
    units = map(before.units.count, range(before.unit_count))
    budget = ask_lib.budget(ask, self.config, (*units, *prepared.regions))
    read = reading.read(
      self.params,
      model,
      before,
      prepared.batch,
      budget,
      views=prepared.views,
      room=ask.max_tokens,
      limits=self.limits,
      trace=trace,
    )
    return engine.Row(read, budget, max_tokens=ask.max_tokens, **_sampling(ask))

  def _before(self, prepared: ask_lib.Prepared) -> context_lib.Context:
    """What something is read after, with the conversation that it becomes."""
    before = prepared.before or context_lib.empty(self.config.model)
    return dataclasses.replace(before, talk=prepared.talk)

  def _decode(self, rows: Sequence[engine.Row], trace: bool) -> engine.Decoding:
    ends, model = self.tokenizer.ends, self.config.model
    return engine.Decoding(self.params, model, rows, stop=ends, trace=trace)

  def _check_sees(self) -> None:
    if missing := {"vision", "projector"} - self.params.keys():
      raise errors.GazeError(
        f"this model has no {', '.join(sorted(missing))}, and images need"
        " both; join a decoder and a tower with launch/convert.py --vision"
      )


def _sampling(ask: ask_lib.Ask) -> dict[str, Any]:
  return dict(
    temperature=ask.temperature,
    top_p=ask.top_p,
    top_k=ask.sample_top_k,
    seed=ask.seed,
  )


def load(
  directory: str | os.PathLike,
  *,
  limits: context_lib.Limits = context_lib.Limits(),  # noqa: B008
) -> Model:
  """A model out of any directory that holds one.

  Compiled programs are kept in `~/.cache/gaze_jax` for the next process, or
  where JAX_COMPILATION_CACHE_DIR says.

  Args:
    directory: a workdir of launch/train.py, a directory of launch/convert.py,
      or a checkpoint of transformers.
    limits: what a conversation may hold.

  Raises:
    errors.GazeError: there is no model that can talk.
  """
  _keep_programs()
  path = pathlib.Path(directory)
  config, params = weights.load(path)
  if "decoder" not in params:
    raise errors.GazeError(
      f"{path}: no decoder here, so it can't answer; join it with one by"
      " launch/convert.py --vision"
    )
  params |= dict(decoder=decoder.for_decoding(params["decoder"]))
  tokenizer = tokenizer_lib.Tokenizer.load(config.data.tokenizer)
  tokenizer.check_rows(config.model.decoder.vocab_size)
  return Model(config, params, tokenizer, limits)


def _keep_programs() -> None:
  """A persistent compilation cache, unless there is one already."""
  if jax.config.jax_compilation_cache_dir:
    return
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  folder = pathlib.Path(base) / "gaze_jax" / "programs" / _processor()
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
  """A name for this kind of processor.

  A program that was compiled for another one may end in an illegal
  instruction, and homes are shared between machines.
  """
  about = [platform.machine(), platform.processor()]
  listed = pathlib.Path("/proc/cpuinfo")
  if listed.is_file():
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
    kinds = ("model name", "flags", "Features")
    about += sorted({x for x in lines if x.startswith(kinds)})
  return hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
