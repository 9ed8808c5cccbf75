"""A model that answers."""

import dataclasses
import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.api import answer as answer_lib
from gaze_jax.api import conversation
from gaze_jax.api import directory as directory_lib
from gaze_jax.api import media
from gaze_jax.api import request as request_lib
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import engine
from gaze_jax.decode import reading
from gaze_jax.decode import sampling
from gaze_jax.models import decoder
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib

# Tokens between two looks for stop strings.
_SEGMENT = 16


@dataclasses.dataclass(frozen=True)
class Model:
  """A model, ready for questions; make one with `load`.

  Attributes:
    config: its config.
    params: its parameters, a nested dict; matrices in the dtype that they
      were loaded in, the rest float32.
    tokenizer: its tokenizer and chat format.
    limits: what a conversation may hold.
    mesh: the devices that hold the parameters.
  """

  config: config_lib.Config
  params: mllm.Params
  tokenizer: tokenizer_lib.Tokenizer
  limits: context_lib.Limits = context_lib.Limits()
  mesh: jax.sharding.Mesh = dataclasses.field(
    default_factory=mesh_lib.one_device
  )

  def encode_image(self, *images: media.Picture) -> context_lib.Context:
    """Reads images once, for any number of questions about them.

    Args:
      *images: files, bytes, uint8 [height, width, 3], or images of PIL.

    Raises:
      errors.GazeError: an image can't be used, or there are too many.
    """
    return self.encode(images=images)

  def encode_video(
    self, video: media.Video, *, frames: int = 8
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
    images: Sequence[media.Picture] = (),
    videos: Sequence[media.Video] = (),
    frames: int = 8,
    system: str | None = None,
  ) -> context_lib.Context:
    """Reads images, then videos, once; as `encode_image` and `encode_video`.

    Args:
      images: as in `encode_image`.
      videos: as in `encode_video`.
      frames: likewise, of each.
      system: as in `Request`.

    Raises:
      errors.GazeError: one can't be used, or there are too many.
    """
    self._check_sees()
    request = request_lib.Request(
      "", images=images, videos=videos, frames=frames, system=system
    )
    context, batch = conversation.opening(request, self.config, self.tokenizer)
    budget = 0  # nothing here is routed
    return reading.read(
      self.params,
      self.config.model,
      context,
      batch,
      budget,
      limits=self.limits,
    )

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
      question: as in `Request`.
      after: likewise.
      trace: whether to record where each token looked, for pictures.
      **options: the other fields of `Request`.

    Raises:
      errors.GazeError: the question can't be asked so; nothing is lost.
    """
    request = request_lib.Request(question, after, **options)
    return self.generate_batch([request], trace=trace)[0]

  def generate_batch(
    self, requests: Sequence[request_lib.Request], *, trace: bool = False
  ) -> list[answer_lib.Answer]:
    """Answers questions together; each answer is what it is alone.

    Args:
      requests: one or more, of any mix.
      trace: as in `generate`.

    Raises:
      errors.GazeError: one of them can't be asked so.
    """
    decoding = self._start(requests, trace)
    texts = [answer_lib.AnswerText(self.tokenizer, r.stop) for r in requests]
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
        waits = any(r.stop for r in requests)
        longest = max(r.max_tokens for r in requests)
        decoding.run(_SEGMENT if waits else longest)
    return [
      answer_lib.finish(self, request, decoding, row, text)
      for row, (request, text) in enumerate(zip(requests, texts, strict=True))
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
    request = request_lib.Request(question, after, **options)
    return answer_lib.Stream(self, request, self._start([request], trace))

  def _start(
    self, requests: Sequence[request_lib.Request], trace: bool
  ) -> engine.Decoding:
    """Reads prompts, each on its own, so that no row depends on another."""
    if not requests:
      raise request_lib.RequestError("nothing is asked")
    for request in requests:
      request.check()
    options = sampling.make(
      len(requests),
      **{name: [getattr(r, name) for r in requests] for name in sampling.NAMES},
    )
    turns = []
    for request in requests:
      if request.images or request.videos:
        self._check_sees()
      turns.append(conversation.next_turn(request, self.config, self.tokenizer))
    prompts, budgets = [], []
    for request, (context, batch) in zip(requests, turns, strict=True):
      regions = context_lib.extended(context, batch).regions_per_unit
      budgets.append(request.budget(self.config, regions))
      prompts.append(
        reading.read(
          self.params,
          self.config.model,
          context,
          batch,
          budgets[-1],
          room=request.max_tokens,
          limits=self.limits,
          trace=trace,
        )
      )
    return engine.Decoding(
      self.params,
      self.config.model,
      prompts,
      budgets,
      max_tokens=[r.max_tokens for r in requests],
      stop=self.tokenizer.ends,
      sampling=options,
      trace=trace,
    )

  def _check_sees(self) -> None:
    if missing := {"vision", "projector"} - self.params.keys():
      raise errors.GazeError(
        f"this model has no {', '.join(sorted(missing))}, and images need"
        " both; join a decoder and a tower with launch/convert.py --vision"
      )


def load(
  directory: str | os.PathLike,
  *,
  parallel: config_lib.ParallelConfig | Mapping[str, int] | None = None,
  dtype: str | None = None,
  limits: context_lib.Limits = context_lib.Limits(),  # noqa: B008
) -> Model:
  """A model out of any directory that holds one.

  With `parallel` all devices of all processes hold it together. Each reads its
  slice of every weight; several processes must all call this.

  Compiled programs are kept in `~/.cache/gaze_jax` for the next process, or
  in JAX_COMPILATION_CACHE_DIR.

  Args:
    directory: a workdir of launch/train.py, a directory of launch/convert.py,
      or a checkpoint of transformers.
    parallel: sizes of the axes of the mesh (data, fsdp, tensor, sequence), as
      in a run's config, `data` being what the others leave; None for one
      device.
    dtype: "float32" or "bfloat16", of all matrices, and of the computation; by
      default as they are on disk, float16 as float32, and as the config says.
    limits: what a conversation may hold.

  Raises:
    errors.GazeError: there is no model that can talk, or it can't be laid on
      the mesh; names each size that does not divide, before a tensor is read.
  """
  _keep_programs()
  path = pathlib.Path(directory)
  mesh = mesh_lib.of(parallel)
  config, params = directory_lib.load(
    path, mesh, dtype=dtype, apart=decoder.decodes_apart(mesh)
  )
  if "decoder" not in params:
    raise errors.GazeError(
      f"{path}: no decoder here, so it can't answer; join it with one by"
      " launch/convert.py --vision"
    )
  tokenizer = tokenizer_lib.Tokenizer.load(config.data.tokenizer)
  tokenizer.check_rows(config.model.decoder.vocab_size)
  return Model(config, params, tokenizer, limits, mesh)


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
