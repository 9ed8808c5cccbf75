"""A model that answers."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import storage
from gaze_jax.api import answer as answer_lib
from gaze_jax.api import conversation
from gaze_jax.api import directory as directory_lib
from gaze_jax.api import many
from gaze_jax.api import media
from gaze_jax.api import request as request_lib
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import engine
from gaze_jax.decode import kept
from gaze_jax.decode import reading
from gaze_jax.decode import sampling
from gaze_jax.decode import scheduler
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
    cache_bytes: that keys and values of requests which are answered together
      may take on a device; None for `context.default_cache_bytes`.
  """

  config: config_lib.Config
  params: mllm.Params
  tokenizer: tokenizer_lib.Tokenizer
  limits: context_lib.Limits = context_lib.Limits()
  mesh: jax.sharding.Mesh = dataclasses.field(
    default_factory=mesh_lib.one_device
  )
  cache_bytes: int | None = None

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
    with self.on_mesh():
      context, batch = conversation.opening(
        request, self.config, self.tokenizer
      )
      self._check_fits(context_lib.extended(context, batch), room=1)
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
    if not requests:
      raise request_lib.RequestError("nothing is asked")
    with self.on_mesh():
      jobs = [self.prepare(request) for request in requests]
      return [
        answer
        for some in self._that_fit(jobs)
        for answer in self._answer(requests[some], jobs[some], trace)
      ]

  def generate_many(
    self,
    requests: Iterable[request_lib.Request],
    *,
    batch_size: int = 8,
    progress: bool = False,
  ) -> Iterator[answer_lib.Answer]:
    """Answers any number of requests, several at a time, in their order.

    Continuous batching: the row of a complete answer goes to the next request,
    whose prompt is read between two decoding steps. An answer depends on its
    own request and on `batch_size` alone. Its context holds no keys and values,
    so no further question can be asked from it.

    Args:
      requests: of any mix; they are taken as they can be read, some ahead.
      batch_size: rows that are decoded together.
      progress: whether a bar is shown, with the count of programs compiled.

    Yields:
      The answers, in the order of the requests.

    Raises:
      errors.GazeError: a request can't be asked so; it is named by its number,
        from 0, and raised after the answers to those before it.
    """
    yield from many.in_order(self, requests, batch_size, progress)

  def generate_as_completed(
    self,
    requests: Iterable[request_lib.Request],
    *,
    batch_size: int = 8,
    progress: bool = False,
    on_error: many.OnError | None = None,
  ) -> Iterator[tuple[int, answer_lib.Answer]]:
    """As `generate_many`, but each answer comes when it is complete.

    Args:
      requests: as in `generate_many`.
      batch_size: likewise.
      progress: likewise.
      on_error: called with the number and the error of each request that can't
        be asked so, which then has no answer; None to raise the first.

    Yields:
      The number of a request, from 0, and its answer.

    Raises:
      errors.GazeError: as `generate_many`.
    """
    yield from many.as_completed(self, requests, batch_size, progress, on_error)

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
    with self.on_mesh():
      decoding = self._start([self.prepare(request)], trace)
    return answer_lib.Stream(self, request, decoding)

  def on_mesh(self) -> contextlib.AbstractContextManager:
    """Within it programs run on the model's mesh."""
    if self.mesh.size == 1:
      return contextlib.nullcontext()
    return jax.set_mesh(self.mesh)

  def prepare(
    self,
    request: request_lib.Request,
    *,
    in_parts: bool = False,
    trace: bool = False,
  ) -> scheduler.Job:
    """What is to be read of a request, before anything is.

    Args:
      request: the request.
      in_parts: whether what a conversation shows is read as contexts of their
        own, which a scheduler keeps for others; it is one with `talk`.
      trace: whether the job is traced.

    Raises:
      errors.GazeError: it can't be asked so.
    """
    request.check()
    if in_parts and not request.talk:
      raise request_lib.RequestError(
        "a question alone has no parts: give the conversation as talk"
      )
    options = {name: getattr(request, name) for name in sampling.NAMES}
    sampled = sampling.make(1, **options)
    if request.images or request.videos:
      self._check_sees()
    rows = conversation.in_parts if in_parts else conversation.next_turn
    found = rows(request, self.config, self.tokenizer)
    *before, (context, batch) = found if in_parts else [found]
    after = reading.extended(
      context, batch, room=request.max_tokens, limits=self.limits
    )
    self._check_fits(after, request.max_tokens)
    budget = request.budget(self.config, after.units)
    override = request.override(self.config, len(after.sizes))
    prompt = reading.Prompt(context, batch, budget, override)
    return scheduler.Job(
      prompt,
      after,
      request.max_tokens,
      sampled,
      openings=kept.openings(before, budget),
      traced=trace,
    )

  def _check_fits(self, after: context_lib.Context, room: int) -> int:
    """Bytes of a row's keys and values, refused if they can never fit."""
    regions, slots = reading.needs(after, room)
    need = context_lib.row_bytes(self.config.model, regions, slots)
    context_lib.check_bytes(need, self.most_cache_bytes, regions, slots)
    return need

  def _that_fit(self, jobs: Sequence[scheduler.Job]) -> list[slice]:
    """Runs of jobs of a kind whose keys and values fit in memory together."""
    starts, held = [0], 0
    for number, job in enumerate(jobs):
      need = self._check_fits(job.after, job.max_tokens)
      before = jobs[starts[-1]].size.overridden
      if held and (
        held + need > self.most_cache_bytes or job.size.overridden != before
      ):
        starts.append(number)
        held = 0
      held += need
    return list(map(slice, starts, [*starts[1:], len(jobs)]))

  @property
  def most_cache_bytes(self) -> int:
    """`cache_bytes`, or the default."""
    return self.cache_bytes or context_lib.default_cache_bytes()

  def _answer(
    self,
    requests: Sequence[request_lib.Request],
    jobs: Sequence[scheduler.Job],
    trace: bool,
  ) -> list[answer_lib.Answer]:
    """Answers to requests that are decoded together to the end."""
    decoding = self._start(jobs, trace)
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
      answer_lib.of_row(self, request, decoding, row, text)
      for row, (request, text) in enumerate(zip(requests, texts, strict=True))
    ]

  def _start(
    self, jobs: Sequence[scheduler.Job], trace: bool
  ) -> engine.Decoding:
    """Reads prompts, each on its own, so that no row depends on another."""
    prompts = [
      reading.read(
        self.params,
        self.config.model,
        *job.prompt,
        room=job.max_tokens,
        limits=self.limits,
        trace=trace,
      )
      for job in jobs
    ]
    return engine.Decoding(
      self.params,
      self.config.model,
      prompts,
      [job.prompt.budget for job in jobs],
      max_tokens=[job.max_tokens for job in jobs],
      stop=self.tokenizer.ends,
      sampling=jax.tree.map(
        lambda *x: np.concatenate(x), *(job.sampling for job in jobs)
      ),
      overrides=[job.prompt.override for job in jobs],
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
  cache_bytes: int | None = None,
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
    cache_bytes: that the keys and values of all requests which are answered
      together may take on a device; None for `context.default_cache_bytes`.
    limits: what a conversation may hold.

  Raises:
    errors.GazeError: there is no model that can talk, or it can't be laid on
      the mesh; names each size that does not divide, before a tensor is read.
  """
  _keep_programs()
  path = storage.path(directory)
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
  # Once, beside the weights: pools of rows are as large as this says.
  cache_bytes = cache_bytes or context_lib.default_cache_bytes()
  return Model(config, params, tokenizer, limits, mesh, cache_bytes)


def _keep_programs() -> None:
  """A persistent compilation cache, unless there is one already."""
  if jax.config.jax_compilation_cache_dir:
    return
  folder = storage.cache() / "programs" / _processor()
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
