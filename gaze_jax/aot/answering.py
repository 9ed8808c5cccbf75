"""The programs that answer a request, compiled as `decode/` compiles them.

A request is laid out, split and padded by the functions that do it for a
user's, and every program is the object that `decode/` calls, so that what is
compiled here is what will run (tests/aot/answering_test.py):

  vision   the tower, the embedding of the row
  alone    chunks of units and of text, first token, decoding steps or a loop
  many     the same with a pool: a row goes in among others, the loop
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.aot import workloads
from gaze_jax.data import prompts
from gaze_jax.decode import context as context_lib
from gaze_jax.decode import engine
from gaze_jax.decode import loop
from gaze_jax.decode import programs
from gaze_jax.decode import reading
from gaze_jax.decode import sampling as sampling_lib
from gaze_jax.decode import scheduler
from gaze_jax.kernels import target
from gaze_jax.layout import row as row_lib
from gaze_jax.layout import tiles
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.models import vision
from gaze_jax.ops.decode import cache as cache_ops
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard

# Text of a prompt before its images and behind them, and tokens of an answer.
_BEFORE, _BEHIND, _ANSWER = 8, 120, 256
# Rows of a pool, for each shard of the rows.
_POOL = 4
_STREAM = "launch/generate.py, launch/chat.py"
_WHOLE, _MANY = "Model.generate", "Model.generate_many"
_ALONE = f"{_STREAM}, {_WHOLE}"
_EVERY = f"{_ALONE}, {_MANY}"


def request(model: config_lib.ModelConfig, images: int) -> types.Batch:
  """A prompt of so many square images and 128 tokens of text, in numpy."""
  side = model.vision.grid
  text = lambda n: row_lib.Text([0] * n)
  parts = [text(_BEFORE), *[row_lib.Unit(side, side)] * images, text(_BEHIND)]
  pixels = jax.eval_shape(lambda: vision.blank(model.vision, images))
  black = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), pixels)
  return prompts.batch([prompts.Prompt(tuple(parts), black)], model)


def of_request(
  model: config_lib.ModelConfig,
  mesh: jax.sharding.Mesh,
  batch: types.Batch,
  *,
  max_tokens: int = _ANSWER,
  ends: int = 1,
  pool: int = _POOL,
) -> list[workloads.Workload]:
  """All programs that read a prompt and answer it.

  Args:
    model: the model.
    mesh: of `workloads.serving`.
    batch: `Batch` of one row, the trunk of one sample, in numpy.
    max_tokens: tokens of the answer at most.
    ends: ids that end an answer.
    pool: rows that are decoded together, for each shard of the rows.
  """
  with jax.set_mesh(mesh), target.tracing_for("tpu"):
    one = _Request(model, mesh, batch, max_tokens, ends)
    return [*one.vision(), *one.alone(), *one.many(pool)]


class _Request:
  """Abstract arguments of the programs; made and asked within its mesh."""

  def __init__(
    self,
    model: config_lib.ModelConfig,
    mesh: jax.sharding.Mesh,
    batch: types.Batch,
    max_tokens: int,
    ends: int,
  ):
    self._model, self._mesh, self._batch = model, mesh, batch
    self._max_tokens, self._ends = max_tokens, ends
    self._params = workloads.weights(model, mesh)
    self._decoder = {"decoder": self._params["decoder"]}
    self._shards = shard.row_shards()
    prompt = reading.Prompt(context_lib.Context(None), batch, budget=0)
    after = reading.extended(
      prompt.context, batch, room=max_tokens, limits=context_lib.Limits()
    )
    self._prompt = prompt
    self._job = scheduler.Job(
      *(prompt, after, max_tokens, sampling_lib.make(1)), lambda ids: False
    )
    self._cache = self._read_into(*reading.needs(after, max_tokens))

  def vision(self) -> list[workloads.Workload]:
    """From pixels to the embedded row."""
    images = self._batch.images
    count = jax.tree.leaves(images)[0].shape[1]
    of_tiles = lambda n: jax.tree.map(
      lambda x: _host((self._shards, n, *x.shape[2:]), x.dtype), images
    )
    tower = {"vision": self._params["vision"]}
    look = functools.partial(mllm.features, config=self._model)
    seen = jax.eval_shape(look, tower, images=of_tiles(1))
    shape = (self._shards, reading.tile_bucket(count), *seen.shape[2:])
    features = jax.ShapeDtypeStruct(shape, seen.dtype)
    features = self._placed(features, shard.P("batch"))
    table, row = reading.embedders(self._params), self._embedded_row(features)
    embed = functools.partial(mllm.embed, config=self._model)
    self._embedded = jax.eval_shape(embed, table, batch=row)
    return [
      *(
        self._workload(
          *(reading.features_program, f"{n} tiles", _EVERY),
          (tower, of_tiles(n)),
        )
        for n in sorted(set(reading.tile_buckets(count)))
      ),
      self._workload(
        *(reading.embed_program, f"{row.tokens.shape[1]} slots", _EVERY),
        (table, row),
        weights=False,  # a table that is looked up
      ),
    ]

  def alone(self) -> list[workloads.Workload]:
    """From the embedded row to tokens, the request on its own."""
    cache, room = self._cache, programs.bucket(self._max_tokens, engine.TOKENS)
    options = self._options(self._shards, _regions(cache))
    start, carry = self._start(cache, options, room)
    again = (self._decoder, cache.visual, carry, options)
    of = f"{self._shards} rows"
    greedy = dict(greedy=True)
    return [
      *self._pieces(cache, {True: _STREAM, False: _WHOLE}),
      self._workload(loop.start_program, of, _ALONE, *start, weights=False),
      self._workload(
        *(loop.step_program, f"{of}, traced", _STREAM, again),
        greedy | dict(trace=True),
      ),
      self._workload(
        loop.run_program, of, _WHOLE, (*again, *_bounds()), greedy
      ),
    ]

  def many(self, rows: int) -> list[workloads.Workload]:
    """The same in a pool of so many rows for each shard of the rows."""
    size, rows = self._job.size, rows * self._shards
    one = self._read_into(size.regions, size.slots)
    start, new = self._start(
      one, self._options(self._shards, size.regions), size.tokens
    )
    make = functools.partial(
      cached.empty,
      *(self._model, rows),
      regions=size.regions,
      region_length=tiles.largest_region(self._model),
      capacity=size.slots,
    )
    pool = self._placed(jax.eval_shape(make), cache_ops.SHARDING)
    options = self._options(rows, size.regions)
    _, carry = self._start(pool, options, size.tokens)
    held = (pool, one)
    return [
      *self._pieces(one, {False: _MANY}, held),
      self._workload(
        *(loop.start_program, f"{self._shards} rows, for a pool"),
        *(_MANY, *start),
        weights=False,
        held=held,
      ),
      self._workload(
        *(loop.insert_program, f"{rows} rows", _MANY),
        (pool.visual, carry, one.visual, new, _host(self._shards, np.int32)),
        weights=False,
        held=held,
        rows=rows,
      ),
      self._workload(
        *(loop.run_program, f"{rows} rows, of a pool", _MANY),
        (self._decoder, pool.visual, carry, options, *_bounds()),
        dict(greedy=True),
        held=held,
        rows=rows,
      ),
    ]

  def _pieces(
    self,
    cache: types.DecodeCache,
    commands: dict[bool, str],
    held: Any = None,
  ) -> list[workloads.Workload]:
    """From the embedded row to a cache.

    Args:
      cache: of [W].
      commands: that read text, by whether they trace it.
      held: caches that are there, if it is not this one alone.
    """
    w, found, of = self._shards, {}, ", for a pool" if held else ""
    ints = lambda *shape: _host((w, *shape), np.int32)
    pieces = self._prompt.pieces()
    for number, piece in enumerate(pieces, 1):
      x, last = piece.size, number == len(pieces)
      every = {False: ", ".join(commands.values())}
      if piece.text:
        for trace, command in (commands if last else every).items():
          found[True, x, last, trace] = self._workload(
            reading.text_program,
            f"{x} slots{', the last' * last}{', traced' * trace}{of}",
            command,
            (self._decoder, cache.visual, _linear(cache), ints(x), ints()),
            dict(count=ints(), prompt=True, logits=last, trace=trace),
            held=held,
          )
      else:
        like = self._embedded
        row = jax.ShapeDtypeStruct((w, x, like.shape[2]), like.dtype)
        row = self._placed(row, shard.P("batch"))
        fields = dataclasses.fields(types.Layout)
        layout = types.Layout(**{f.name: ints(x) for f in fields})
        found[False, x, False, False] = self._workload(
          reading.units_program,
          f"{x} slots{of}",
          every[False],
          (self._decoder, cache, row, types.Chunk(layout, ints(x))),
          held=held,
        )
    return [found[key] for key in sorted(found)]

  def _workload(
    self,
    program: programs.Program,
    detail: str,
    command: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any] | None = None,
    *,
    weights: bool = True,
    held: Any = None,
    rows: int | None = None,
  ) -> workloads.Workload:
    """Of a program whose second argument is the model, unless it is named."""
    options = options or {}
    held = held or self._cache
    known = set(map(id, jax.tree.leaves((self._params, held))))
    rest = [
      x
      for x in jax.tree.leaves((arguments, options))
      if isinstance(x, jax.ShapeDtypeStruct) and id(x) not in known
    ]
    if program not in (loop.start_program, loop.insert_program):
      arguments = (arguments[0], self._model, *arguments[1:])
    return workloads.Workload(
      name=f"{program.name}, {detail}",
      command=command,
      mesh=self._mesh,
      function=program,
      arguments=arguments,
      options=options,
      parts=dict(parameters=self._params, cache=held, batch=rest),
      rows=rows or self._shards,
      weights=weights,
      one_turn=program is loop.run_program,
    )

  def _embedded_row(self, features: Any) -> types.Batch:
    """The row as it is embedded, its images being features."""
    batch, slots = self._batch, reading.embedded_slots(self._batch)
    wide = lambda x: _host((self._shards, slots, *x.shape[2:]), x.dtype)
    return types.Batch(
      tokens=wide(batch.tokens),
      layout=jax.tree.map(wide, batch.layout),
      feed=wide(batch.feed),
      region_slots=None,
      images=features,
      answer_slots=None,
      answer_of=None,
      blend=jax.tree.map(wide, batch.blend),
    )

  def _read_into(self, regions: int, slots: int) -> types.DecodeCache:
    """What a prompt is read into."""
    make = lambda: context_lib.reserve(
      context_lib.empty(self._model).cache, regions=regions, slots=slots
    )
    return self._placed(jax.eval_shape(make), cache_ops.SHARDING)

  def _options(self, rows: int, regions: int) -> loop.Options:
    like = lambda x: _host(x.shape, x.dtype)
    return loop.Options(
      budget=_host(rows, np.int32),
      sampling=jax.tree.map(like, sampling_lib.make(rows)),
      stop=_host(self._ends, np.int32),
      max_tokens=_host(rows, np.int32),
      sizes=_host((rows, regions), np.float32),
    )

  def _start(
    self, cache: types.DecodeCache, options: loop.Options, room: int
  ) -> tuple[tuple[Any, ...], loop.Carry]:
    """Arguments of `loop.start_program`, and what it gives."""
    c, rows = self._model.decoder, len(options.budget)
    shape = (c.depth, rows, 1, c.query_heads, _regions(cache))
    chosen = jax.ShapeDtypeStruct(shape, bool)
    logits = jax.ShapeDtypeStruct((rows, c.vocab_size), jnp.float32)
    arguments = (
      _linear(cache),
      self._placed(logits, shard.P("table_rows", "head_vocab")),
      self._placed(chosen, shard.P(*shard.NEW_OF_LAYERS, None)),
      options,
      _host(rows, bool),
    )
    named = dict(config=self._model, room=room, greedy=True)
    carry = jax.eval_shape(functools.partial(loop.start, **named), *arguments)
    carry = self._placed(carry, loop.SHARDING)
    # The same objects, so that they count once.
    carry = dataclasses.replace(carry, cache=_linear(cache))
    return (arguments, named), carry

  def _placed(self, tree: Any, names: Any) -> Any:
    """Abstract arrays, sharded as `shard.constrain` does with these names."""

    def one(x: Any, *names: str | None) -> jax.ShapeDtypeStruct:
      axes = [
        None if n == 1 else name for name, n in zip(names, x.shape, strict=True)
      ]
      spec = rules.spec(axes, x.shape, self._mesh)
      place = jax.sharding.NamedSharding(self._mesh, spec)
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    return shard.map_named(one, tree, names)


def _host(shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
  """An array that comes from the host with each call."""
  return jax.ShapeDtypeStruct(np.broadcast_shapes(shape), dtype)


def _bounds() -> tuple[Any, Any]:
  """How many steps, and whether the loop stops when one row is done."""
  return _host((), np.int32), _host((), bool)


def _linear(cache: types.DecodeCache) -> types.DecodeCache:
  return dataclasses.replace(cache, visual=None)


def _regions(cache: types.DecodeCache) -> int:
  return cache.visual.valid.shape[1]
