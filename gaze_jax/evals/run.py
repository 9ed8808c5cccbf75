"""Runs every condition on every split, from a workdir's newest checkpoint."""

import collections
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import plugins
from gaze_jax import storage
from gaze_jax import types
from gaze_jax.data import mixture
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.decode import programs
from gaze_jax.evals import conditions as conditions_lib
from gaze_jax.evals import data_file
from gaze_jax.evals import metrics
from gaze_jax.layout import grid as grid_lib
from gaze_jax.models import mllm
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules
from gaze_jax.parallel import shard
from gaze_jax.train import compatibility
from gaze_jax.train import features as features_lib
from gaze_jax.train import losses
from gaze_jax.train import runs

# A region shows a thing when so much of it is covered by the thing's mask.
ON_TARGET = 0.1
# Of visual entries in sight, those read; by a query head, and by its KV group.
_FRACTIONS = ("visual_kv_fraction", "unique_visual_kv_fraction")
_NOTHING = (
  "nothing to evaluate on; name a file, --data=FILE --image_folder=DIR, or"
  " train with data.eval_path set"
)


@dataclasses.dataclass
class Score:
  """What one condition did on one split.

  Attributes:
    right: by kind, how many questions were answered exactly.
    asked: by kind, how many were asked.
    usage: chosen, unique and visible entries, summed.
    routing: per layer, shares of chosen regions on target; one a question.
    chance: the share that random regions would have, likewise.
  """

  right: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  asked: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  usage: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3))
  routing: list[np.ndarray] = dataclasses.field(default_factory=list)
  chance: list[float] = dataclasses.field(default_factory=list)

  def summary(self) -> dict[str, Any]:
    """Plain numbers: a share by kind, `overall`, `n`, intervals, budget.

    A caption counts as its own kind alone: every thing and place in it must be
    right, which is another measure than a question.
    """
    out: dict[str, Any] = {}
    intervals = {}
    for kind, n in self.asked.items():
      out[kind] = self.right[kind] / n
      intervals[kind] = metrics.wilson(self.right[kind], n)
    n, right = (c.total() - c["caption"] for c in (self.asked, self.right))
    out |= dict(overall=right / max(n, 1), n=n)
    out["n_by_kind"] = dict(self.asked)
    out["interval_95"] = intervals | {"overall": metrics.wilson(right, n)}
    if self.usage[2]:
      shares = (self.usage[:2] / self.usage[2]).tolist()
      out |= zip(_FRACTIONS, shares, strict=True)
    return out


def evaluate(
  workdir: storage.Path,
  *,
  data: str = "",
  image_folder: str = "",
  others: Sequence[int | float] | None = None,
  frames: int | None = None,
  parallel: config_lib.ParallelConfig | Mapping[str, int] | None = None,
  dtype: str | None = None,
) -> dict[str, Any]:
  """Evaluates the newest checkpoint of a workdir.

  The file that it was trained on is not opened. Of several processes all must
  call this; each returns the report.

  Args:
    workdir: of launch/train.py.
    data: a file in LLaVA's format to score; what the run names by default.
    image_folder: what its image names are relative to; the run's by default.
    others: budgets, as in `conditions.conditions`; none need be in the config.
    frames: taken of a video at most, as `data.frames`; the run's by default.
    parallel: sizes of the axes of the mesh, as in `api.load`; None for one
      device. It changes no result.
    dtype: "float32" or "bfloat16", of all matrices and the computation; as
      trained by default.

  Returns:
    A report fit for JSON; `gaze_jax/evals/report.py` renders it.

  Raises:
    errors.GazeError: no checkpoint, nothing to evaluate on, or another
      tokenizer than the run was trained with.
  """
  start = time.perf_counter()
  mesh = mesh_lib.of(parallel)
  saved = runs.open_run(workdir, mesh)
  config, step = saved.config(), saved.latest()
  saved.check_inputs(compatibility.model_inputs(config), config)
  config = _with_frames(config, frames)
  config, opened = data_file.load(config, data, image_folder)
  cached = config.train.features == "cached"
  config, params = runs.read(
    saved, config, mesh, pixels=not cached, dtype=dtype
  )
  splits = plugins.source(config.data.source).splits(config)
  if not splits:
    raise errors.GazeError(f"{workdir}: {_NOTHING}")
  ends = np.array(tokenizer_lib.Tokenizer.load(config.data.tokenizer).ends)
  model = _OnMesh(params, ends, mesh)
  features = storage.near(workdir) / "features" if cached else None
  results = {}
  for name, split in splits.items():
    source = opened
    if source is None:
      split, source = _opened(split, name)
    results[name] = _split(model, split, name, source, config, features, others)
  return _report(results, config, splits["new"].data.eval_path) | dict(
    step=step, seconds=time.perf_counter() - start
  )


def _opened(
  config: config_lib.Config, split: str
) -> tuple[config_lib.Config, samples.Source]:
  """A split that a run names, and how its samples have a row each."""
  source = plugins.source(config.data.source).make(config, split)
  return data_file.with_data(config, mixture.alone(config, source)), source


def _with_frames(
  config: config_lib.Config, frames: int | None
) -> config_lib.Config:
  """The config with so many frames of a video, if that is not None."""
  if frames is None:
    return config
  data = dataclasses.replace(config.data, frames=frames)
  return dataclasses.replace(config, data=data)


def _report(
  results: dict[str, Any], config: config_lib.Config, path: str
) -> dict[str, Any]:
  """What `evaluate` returns, but for step and time; `path` of the new split."""
  main = results["new"]["conditions"]
  return dict(
    **{name: main["gaze"].get(name, 0.0) for name in _FRACTIONS},
    data=dict(path=path, **results["new"]["data"]),
    accuracy=main,
    routing_accuracy=results["new"]["routing_accuracy"],
    other_splits={k: v for k, v in results.items() if k != "new"},
    config=config_lib.to_dict(config),
  )


def batch_rows(config: config_lib.Config, mesh: jax.sharding.Mesh) -> int:
  """Rows of a batch: `eval.batch_size`, rounded up to what devices share."""
  ways = rules.ways("batch", dict(mesh.shape))
  return -(-config.eval.batch_size // ways) * ways


@dataclasses.dataclass(frozen=True)
class _OnMesh:
  """The model on its devices.

  Attributes:
    params: its parameters.
    ends: int [Z], ids that end an answer.
    mesh: the devices.
  """

  params: mllm.Params
  ends: np.ndarray
  mesh: jax.sharding.Mesh

  def look(
    self,
    config: config_lib.ModelConfig,
    batch: types.Batch,
    budget: np.ndarray,
    override: np.ndarray | None,
  ) -> tuple[np.ndarray, Any, np.ndarray]:
    """`_look` at a batch that every process has whole."""
    asked = (batch, budget, override)
    if self.mesh.size == 1:
      return jax.device_get(forward(self.params, config, self.ends, *asked))
    place = shard.batch_sharding(self.mesh)
    asked = jax.tree.map(lambda x: shard.put(x, place), asked)
    with jax.set_mesh(self.mesh):
      return jax.device_get(forward(self.params, config, self.ends, *asked))


def _split(
  model: _OnMesh,
  config: config_lib.Config,
  split: str,
  source: samples.Source,
  run: config_lib.Config,
  kept: pathlib.Path | None,
  others: Sequence[int | float] | None,
) -> dict[str, Any]:
  """One split, with features of the run's tower if they are to be kept."""
  features = None
  if kept:
    features = features_lib.cached(config, source, kept, run=run)
  size = batch_rows(config, model.mesh)
  config = dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, batch_size=size)
  )
  conditions = conditions_lib.conditions(config, others)
  scores = {c.name: Score() for c in conditions}
  scores["prior"] = Score()
  prior = _prior(config)
  batches = pipeline.eval_batches(config, source, features)
  for batch in tqdm.tqdm(
    batches,
    f"eval {split}",
    -(-len(source) // size),
    mininterval=5,
    disable=jax.process_index() != 0,
  ):
    for condition in conditions:
      _condition(model, config, condition, batch, source, scores)
    _score_prior(prior, batch.samples, scores["prior"])
  gaze = scores["gaze"]
  return dict(
    data=source.content(),
    conditions={
      name: score.summary()
      for name, score in scores.items()
      if score.asked  # conversations have no prior
    },
    routing_accuracy=_routing(gaze),
  )


def _look(params, config, ends, batch, budget, override):
  """Right answer slots, usage and regions read at them."""
  out = mllm.apply(params, config, batch, budget, override=override)
  target, scored = losses.targets(batch)
  right = losses.right(out.logits.argmax(-1), target, ends) & scored
  # Whole on each device, as every process reads them.
  everywhere = lambda x: shard.constrain(x, *(None,) * x.ndim)
  return jax.tree.map(everywhere, (right, out.usage, out.chosen))


forward = programs.Program(_look, "a batch of questions")


def _condition(
  model: _OnMesh,
  config: config_lib.Config,
  condition: conditions_lib.Condition,
  batch: pipeline.EvalBatch,
  source: samples.Source,
  scores: dict[str, Score],
) -> None:
  """Adds one batch under one condition to its score."""
  score = scores[condition.name]
  shown = (
    batch.batch
    if condition.image
    else conditions_lib.without_image(batch.batch)
  )
  override = conditions_lib.override(condition, batch, config.model)
  budget = conditions_lib.budget(condition, batch, config)
  right, usage, chosen = model.look(config.model, shown, budget, override)
  most = max(len(sample.kinds) for sample in batch.samples)
  exact = metrics.exact_match(right, batch.batch.answer_of, most)
  for row, sample in enumerate(batch.samples):
    for number, kind in enumerate(sample.kinds):
      score.asked[kind] += 1
      score.right[kind] += int(exact[row, number])
  score.usage += [usage.chosen, usage.unique, usage.visible]
  if condition.name == "gaze":
    _add_routing(config, batch, source, chosen, score)


def _add_routing(
  config: config_lib.Config,
  batch: pipeline.EvalBatch,
  source: samples.Source,
  chosen: np.ndarray,
  score: Score,
) -> None:
  """Compares the regions read for the first answer token with the masks."""
  grid, region = config.model.vision.grid, config.model.gaze.region
  regions = grid_lib.region_map(grid, grid, region)
  for row, sample in enumerate(batch.samples):
    things = source.sample(int(batch.indices[row])).things
    for number, question in enumerate(sample.questions):
      if len(question.about) != 1:
        continue
      mask = things[question.about[0]].mask
      frames = mask if mask.ndim == 3 else mask[None]
      target = np.concatenate(
        [
          metrics.on_target(frames[part.start : part.stop], regions, ON_TARGET)
          for part in grid_lib.frame_parts(len(frames), region)
        ]
      )
      slot = np.flatnonzero(batch.batch.answer_of[row] == number)[0]
      picked = chosen[:, row, slot, :, : len(target)]
      accuracy, chance = metrics.routing_accuracy(picked, target)
      if np.isfinite(accuracy).all():
        score.routing.append(accuracy)
        score.chance.append(chance)


def _routing(score: Score) -> dict[str, Any]:
  if not score.routing:
    return {}
  return dict(
    layers=np.mean(score.routing, axis=0).tolist(),
    random=float(np.mean(score.chance)),
    n=len(score.routing),
    region_counts_when_covered=ON_TARGET,
  )


def _prior(config: config_lib.Config) -> dict[str, str]:
  """The most frequent training answer to each question, where they repeat."""
  if not plugins.source(config.data.source).repeats:
    return {}
  train = mixture.training(config)
  seen: dict[str, collections.Counter] = collections.defaultdict(
    collections.Counter
  )
  for index in range(len(train)):
    for question in train.text(index).questions:
      seen[question.text][question.answer] += 1
  return {text: c.most_common(1)[0][0] for text, c in seen.items()}


def _score_prior(
  prior: dict[str, str], taken: tuple[samples.Sample, ...], score: Score
) -> None:
  for sample in taken:
    for question in sample.questions:
      score.asked[question.kind] += 1
      score.right[question.kind] += prior.get(question.text) == question.answer
