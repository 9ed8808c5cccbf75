"""The configuration as frozen dataclasses, and the border where it is read.

A config file in configs/ builds an `ml_collections.ConfigDict`;
`from_config_dict` turns it into a `Config` once and checks it; nothing past
that border sees a ConfigDict. A field's type says which values it takes
(gaze_jax/fields.py); `validate` of a section says which combinations make
sense, and raises a `ConfigError` for the first that does not.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ml_collections import config_dict

from gaze_jax import data_config
from gaze_jax import fields
from gaze_jax import plugins

# What a config is refused with; the message names the key.
ConfigError = fields.ConfigError


def _require(holds: bool, message: str) -> None:
  if not holds:
    raise ConfigError(f"config: {message}")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """A ViT encoder. Defaults: DINOv2 ViT-S/14."""

  weights: str = "random"  # or of a package, by name (gaze_jax/plugins.py)
  frozen: bool = False
  # Pixels a side: a multiple of patch_size, or what position_grid is for.
  image_size: fields.Count = 168
  patch_size: fields.Count = 14
  width: fields.Count = 384
  depth: fields.Count = 12
  heads: fields.Count = 6
  mlp_dim: fields.Count = 1536
  class_token: bool = True
  patch_bias: bool = True  # CLIP's patch embedding has none
  pre_norm: bool = False  # CLIP: a LayerNorm before the first block
  layer_scale: bool = True
  activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
  norm_eps: fields.Positive = 1e-6
  position_grid: fields.Count = 37  # side of the learned position table
  hidden_state: fields.Whole = -1  # as in HF hidden_states: 0 is the embedding
  final_norm: bool = False  # apply the closing LayerNorm to the hidden state
  # SigLIP2 NaFlex: pictures of any aspect, as at most so many patches; 0 for
  # towers of squares.
  max_patches: fields.Natural = 0
  # square: the aspect is not kept. crop: the shorter side is fitted, and the
  # middle is cut out (CLIP).
  resize: Literal["square", "crop"] = "square"
  # crop: what that side is fitted to; 0: image_size.
  shorter_side: fields.Natural = 0
  resample: Literal["bicubic", "bilinear"] = "bicubic"
  remat: Literal["none", "full"] = "none"  # run a block again for its gradient
  dtype: Literal["float32", "bfloat16"] = "float32"  # of matmul operands
  mean: fields.Colour = (0.485, 0.456, 0.406)
  std: fields.Spread = (0.229, 0.224, 0.225)

  @property
  def grid(self) -> int:
    """Visual tokens a side."""
    return self.image_size // self.patch_size

  @property
  def tokens(self) -> int:
    """Visual tokens of a unit (T), at most."""
    return self.max_patches or self.grid**2

  @property
  def layers_used(self) -> int:
    """How many blocks must run for `hidden_state`."""
    n = self.hidden_state
    return n if n >= 0 else self.depth + 1 + n

  def validate(self) -> None:
    v = "model.vision"
    # So400m reads 384 pixels in patches of 14, and was trained to drop six.
    _require(
      self.image_size % self.patch_size == 0 or self.grid == self.position_grid,
      f"{v}.image_size = {self.image_size} is not a multiple of"
      f" patch_size = {self.patch_size}",
    )
    _require(
      self.width % self.heads == 0,
      f"{v}.width = {self.width} is not a multiple of heads = {self.heads}",
    )
    _require(
      0 <= self.layers_used <= self.depth,
      f"{v}.hidden_state = {self.hidden_state} does not exist in a tower"
      f" of depth {self.depth}",
    )
    _require(
      not self.max_patches or not self.class_token,
      f"{v}.max_patches = {self.max_patches} is a NaFlex tower, which has no"
      " class_token",
    )
    if self.weights != "random":
      given = plugins.weights(self.weights, f"{v}.weights")
      _require(
        given.part == "vision",
        f"{v}.weights = {self.weights!r} are of a {given.part}",
      )
      given.validate(self)


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
  """Vision width to model width; a two-layer MLP as in LLaVA."""

  hidden: fields.Natural = 0  # 0: the model width
  input_norm: bool = False  # LayerNorm on the features first
  positions: Literal["none", "row_column"] = "none"
  position_std: fields.NonNegative = 0.02  # of new row and column embeddings
  # Multiplies what the MLP and the tables give.
  output_scale: fields.Positive = 1.0
  context_std: fields.NonNegative = 0.02  # of new context tokens
  # Side of these tables; 0: that of the vision grid.
  position_grid: fields.Natural = 0


@dataclasses.dataclass(frozen=True)
class TilingConfig:
  """How one image becomes several units (LLaVA-OneVision's AnyRes).

  With `anyres` an image alone is read twice: whole, as one square, and in
  tiles of that size laid together to one grid, whose rows end with a learned
  newline token. Each of several images is one square and a newline.
  """

  kind: Literal["none", "anyres"] = "none"
  # Sizes in pixels (height, width) that a tiled image may be fitted into.
  pinpoints: tuple[tuple[fields.Count, fields.Count], ...] = ()
  # A grid of more visual tokens than these is shrunk.
  max_tiles: fields.Count = 9

  def validate(self, vision: VisionConfig) -> None:
    if self.kind == "none":
      return
    t, size = "model.tiling", vision.image_size
    wrong = [p for p in self.pinpoints if any(n % size for n in p)]
    _require(
      bool(self.pinpoints),
      f"{t}.kind = {self.kind!r} needs {t}.pinpoints, the sizes that an image"
      " may be fitted into",
    )
    _require(
      not wrong,
      f"{t}.pinpoints has {wrong[:1]}, which are no multiples of"
      f" model.vision.image_size = {size}",
    )
    _require(
      not vision.max_patches,
      f"{t}.kind = {self.kind!r} makes squares, and model.vision.max_patches"
      " makes a tower of other shapes",
    )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A Llama-style decoder, which Qwen2 and Qwen3 are too."""

  weights: str = "random"  # or of a package, by name (gaze_jax/plugins.py)
  frozen: bool = False
  vocab_size: fields.Count = 2048
  width: fields.Count = 128
  depth: fields.Count = 3
  query_heads: fields.Count = 4
  kv_heads: fields.Count = 2
  head_dim: fields.Count = 32
  mlp_dim: fields.Count = 384
  rope_theta: fields.Positive = 10_000.0
  norm_eps: fields.Positive = 1e-6
  qk_norm: bool = True  # RMSNorm on queries and keys before RoPE (Qwen3)
  qkv_bias: bool = False  # Qwen2
  tied: bool = True
  embedding_std: fields.Positive = 0.02  # of new token embeddings
  # Multiplies token embeddings where they enter.
  embedding_scale: fields.Positive = 1.0
  scan: bool = True
  # What the backward pass runs again: nothing; all but products with weights;
  # the MLP too; the whole layer. See models/decoder.py.
  remat: Literal["none", "dots", "attention", "full"] = "none"
  dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation

  def validate(self) -> None:
    d = "model.decoder"
    _require(
      self.query_heads % self.kv_heads == 0,
      f"{d}.query_heads = {self.query_heads} is not a multiple of"
      f" kv_heads = {self.kv_heads}",
    )
    _require(
      self.head_dim % 2 == 0,
      f"{d}.head_dim = {self.head_dim} must be even for RoPE",
    )
    if self.weights != "random":
      given = plugins.weights(self.weights, f"{d}.weights")
      _require(
        given.part == "decoder",
        f"{d}.weights = {self.weights!r} are of a {given.part}",
      )
      given.validate(self)


@dataclasses.dataclass(frozen=True)
class GazeConfig:
  """Gaze Attention (docs/method.md, sections 1 and 5).

  Defaults are the paper's.
  """

  # Tokens: rows, columns, and frames of a video; 1 where that is left out.
  region: (
    tuple[fields.Count, fields.Count]
    | tuple[fields.Count, fields.Count, fields.Count]
  ) = (6, 6, 1)
  context_tokens: fields.Natural = 4
  # Who chooses: each query head, or a KV group or all heads by summed scores.
  granularity: Literal["query_head", "kv_group", "layer"] = "query_head"
  # What a region is scored by: its mean key; the best of the means of
  # `sub_cells` balanced runs of its tokens in raster order; Quest's bound.
  descriptor: Literal["mean", "submean", "minmax"] = "mean"
  # submean: 3 cuts 6 x 6 into three bands of two rows.
  sub_cells: fields.Count = 3
  # How many: top_k regions; ratio of those in sight; top_k for each unit in
  # sight (still picked over all units together).
  budget: Literal["fixed", "ratio", "per_unit"] = "fixed"
  top_k: fields.Natural = 8  # regions a query reads once trained
  ratio: fields.PositiveShare = 0.5  # budget = "ratio": share of the regions
  # How often: anew for each token, or once by the last token of the prompt.
  refresh: Literal["token", "question"] = "token"
  dense_layers: tuple[fields.Natural, ...] = ()  # layers that read every region
  # How scores learn: through the keys alone; logits += w * (s - stop(s)); or
  # loss += w * KL(mass that dense attention gives each region || softmax(s)).
  gradient: Literal["none", "straight_through", "kl"] = "none"
  gradient_weight: Annotated[
    fields.Positive, "to train no scores, set gradient = 'none'"
  ] = 1.0  # w
  route_prompt: bool = True  # False: prompt text reads every region
  # Whether visual tokens see those of earlier units.
  visual_attention: Literal["causal", "own_unit"] = "causal"
  # The parallel form (training, evaluation) and the decode form.
  implementation: Literal["auto", "masked", "chunked", "pallas", "cudnn"] = (
    "auto"
  )
  decode_implementation: Literal["auto", "masked", "gather", "pallas"] = "auto"
  chunk: fields.Count = 128  # rows of a chunk in the chunked form

  def __post_init__(self):
    object.__setattr__(self, "region", (*self.region, 1)[:3])

  def validate(self, depth: int) -> None:
    """Checks the section for a decoder of so many layers."""
    g, learns = "model.gaze", self.gradient != "none"
    _require(
      self.descriptor != "submean"
      or 2 <= self.sub_cells <= math.prod(self.region),
      f"{g}.sub_cells = {self.sub_cells} must be 2 to the tokens of a region"
      " with descriptor = 'submean'",
    )
    _require(
      all(i < depth for i in self.dense_layers)
      and len(set(self.dense_layers)) == len(self.dense_layers),
      f"{g}.dense_layers = {self.dense_layers} must name layers 0 to"
      f" {depth - 1}, each once",
    )
    _require(
      self.route_prompt or self.refresh == "token",
      f"{g}.refresh = 'question' keeps what the prompt's last token chose, and"
      " with route_prompt = False no prompt token chooses",
    )
    _require(
      not learns or self.implementation != "pallas",
      f"{g}.gradient = {self.gradient!r} sends a gradient into the scores, and"
      " the kernel of implementation = 'pallas' has none; use 'auto'",
    )
    _require(
      self.implementation != "cudnn" or self.visual_attention == "causal",
      f"{g}.implementation = 'cudnn' is causal, and visual_attention ="
      f" {self.visual_attention!r} is not; use 'auto'",
    )
    _require(
      not learns or len(self.dense_layers) < depth,
      f"{g}.gradient = {self.gradient!r} trains scores, and dense_layers leaves"
      " no layer that has any",
    )
    _require(
      self.gradient != "straight_through"
      or self.top_k > 0
      or self.budget == "ratio",
      f"{g}.gradient = 'straight_through' reaches the scores of chosen regions,"
      " and top_k = 0 chooses none",
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Vision encoder, projector, decoder, and the attention between them."""

  vision: VisionConfig = VisionConfig()
  tiling: TilingConfig = TilingConfig()
  projector: ProjectorConfig = ProjectorConfig()
  decoder: DecoderConfig = DecoderConfig()
  gaze: GazeConfig = GazeConfig()

  def validate(self) -> None:
    self.vision.validate()
    _require(
      not self.vision.max_patches or self.projector.positions == "none",
      f"model.vision.max_patches = {self.vision.max_patches} gives pictures of"
      " any aspect, and model.projector.positions are those of squares",
    )
    self.decoder.validate()
    self.tiling.validate(self.vision)
    self.gaze.validate(self.decoder.depth)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  """K over the steps (docs/method.md, section 5); shares are of all steps."""

  kind: Literal["progressive", "constant", "random"] = "progressive"
  dense_until: fields.Share = 0.1
  final_at: fields.Share = 0.6

  def validate(self) -> None:
    _require(
      self.dense_until <= self.final_at,
      f"train.k_schedule.dense_until = {self.dense_until} is past final_at"
      f" = {self.final_at}",
    )
    _require(
      self.kind != "random" or self.final_at < 1,
      "train.k_schedule.kind = 'random' draws from final_at on, and final_at"
      f" = {self.final_at} is the end of the run",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop and the optimizer."""

  steps: fields.Count = 1000
  batch_size: fields.Count = 32
  # Micro-batches that a step's batch is cut into: the same step with the
  # activations of one of them.
  accumulation: fields.Count = 1
  seed: fields.Seed = 0
  optimizer: Literal["adamw", "muon"] = "adamw"
  # What trains, and how fast: (regular expression over the dotted path of a
  # parameter, share of learning_rate), each parameter in exactly one. Share 0
  # is frozen: no gradient, no optimizer state. (): everything at 1.
  groups: tuple[tuple[str, fields.NonNegative], ...] = ()
  learning_rate: Annotated[
    fields.Positive, "what must not learn is frozen, or in train.groups with 0"
  ] = 1e-3
  warmup_steps: fields.Natural = 50
  schedule: Literal["cosine", "linear", "constant"] = "cosine"  # after warm-up
  # Share of learning_rate at the last step, of cosine and linear.
  final_learning_rate: fields.Share = 0.1
  b1: fields.Decay = 0.9
  b2: fields.Decay = 0.95
  weight_decay: fields.NonNegative = 0.01
  clip_norm: Annotated[
    fields.Positive, "to clip nothing, set one that is never reached: 1e9"
  ] = 1.0  # of the gradient of all that trains
  z_loss: fields.NonNegative = 0.0  # loss += w * mean of logsumexp(logits) ** 2
  # Decay of a moving mean of what trains, which evaluation, generation and
  # conversion then take; 0: none.
  ema: fields.Decay = 0.0
  # muon: learning rate of what Adam takes, a share.
  adam_share: fields.Positive = 1.0
  log_every: fields.Count = 20
  # Every so many steps, and after the last, the main split that
  # launch/eval.py reads (of llava_json data.eval_path) is scored: eval_loss and
  # eval_accuracy in the log. A multiple of log_every; 0: never.
  eval_every: fields.Natural = 0
  # Share of the training samples that is scored instead and never trains,
  # whatever eval_every is; 0: none.
  eval_share: fields.Share = 0.0
  # A trace of so many steps in WORKDIR/profile, for xprof; 0: none. The first
  # of them, by the numbers of the log.
  profile_steps: fields.Natural = 0
  profile_from: fields.Count = 10
  # A project of Weights & Biases that the log is sent to as well; "": none.
  wandb: str = ""
  save_every: fields.Count = 200
  # Of the checkpoints these stay: the newest, multiples of keep_every (0: none)
  # for good, and those with the lowest mean loss since the save before.
  keep: fields.Count = 2
  keep_every: fields.Natural = 0
  keep_best: fields.Natural = 0
  init_from: str = ""  # a directory of launch/convert.py to start from
  features: Literal["none", "cached"] = "none"  # cache a frozen tower's output
  features_dtype: Literal["float16", "float32"] = "float16"
  # TFLOP/s of a device, for the share that is used (mfu in the log); 0: from
  # the table of train/flops.py, where the device is in it.
  peak_tflops: fields.NonNegative = 0.0
  k_schedule: ScheduleConfig = ScheduleConfig()

  def validate(self, model: ModelConfig) -> None:
    """Checks the section for a model."""
    _require(
      self.batch_size % self.accumulation == 0,
      f"train.batch_size = {self.batch_size} is not a multiple of"
      f" train.accumulation = {self.accumulation}",
    )
    for pattern, _ in self.groups:
      try:
        re.compile(pattern)
      except re.error as error:
        raise ConfigError(
          f"config: train.groups: {pattern!r} is no regular expression: {error}"
        ) from None
    cached = self.features == "cached"
    _require(
      not cached or model.vision.frozen,
      "train.features = 'cached' needs model.vision.frozen = True: the"
      " features of a tower that trains change",
    )
    _require(
      not cached
      or (model.tiling.kind == "none" and not model.vision.max_patches),
      "train.features = 'cached' keeps each image as one square, and with"
      f" model.tiling.kind = {model.tiling.kind!r}, model.vision.max_patches ="
      f" {model.vision.max_patches} images differ; set train.features = 'none'",
    )
    self.k_schedule.validate()
    _require(
      self.eval_every % self.log_every == 0,
      f"train.eval_every = {self.eval_every} must be a multiple of"
      f" train.log_every = {self.log_every}, or 0 for never",
    )
    _require(
      not self.profile_steps or self.profile_from <= self.steps,
      f"train.profile_from = {self.profile_from} is past train.steps ="
      f" {self.steps}",
    )
    _require(
      self.keep_every % self.save_every == 0,
      f"train.keep_every = {self.keep_every} must be a multiple of"
      f" train.save_every = {self.save_every}, or 0 for none",
    )


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
  """The device mesh (parallel/mesh.py); it changes no result."""

  data: fields.Whole = -1  # -1: the devices that the other axes leave
  fsdp: fields.Count = 1
  tensor: fields.Count = 1
  sequence: fields.Count = 1

  def validate(self) -> None:
    _require(
      self.data >= 1 or self.data == -1,
      f"parallel.data = {self.data} must be 1 or more, or -1 for the devices"
      " that the other axes leave",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What launch/eval.py runs."""

  # Of a source that makes its samples: of the main split, and of each other.
  samples: fields.Count = 160
  other_samples: fields.Count = 32
  # K, each from the one checkpoint.
  budgets: tuple[fields.Natural, ...] = (1, 2, 3, 4, 8)
  batch_size: fields.Count = 32


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything a run is made of."""

  model: ModelConfig = ModelConfig()
  data: data_config.DataConfig = data_config.DataConfig()
  train: TrainConfig = TrainConfig()
  parallel: ParallelConfig = ParallelConfig()
  eval: EvalConfig = EvalConfig()

  def validate(self) -> None:
    """Raises a `ConfigError` for a combination that makes no sense."""
    self.model.validate()
    _check_rows(self.data, self.model)
    self.train.validate(self.model)
    self.parallel.validate()
    _check_pool(self.data, self.train)


def _check_rows(data: data_config.DataConfig, model: ModelConfig) -> None:
  """Checks the rows of the data for a model."""
  tokens = model.vision.tokens + model.gaze.context_tokens
  slots = data.max_units * tokens
  _require(
    data.sequence_length > slots,
    f"data.sequence_length = {data.sequence_length} leaves no room for"
    f" text beside {slots} visual and context slots",
  )
  _require(
    model.tiling.kind == "none" or data.max_units >= 2,
    f"data.max_units = {data.max_units}: with model.tiling.kind ="
    f" {model.tiling.kind!r} an image alone is two units, so 2 at least",
  )
  _require(
    model.decoder.weights in ("random", data.tokenizer),
    f"model.decoder.weights = {model.decoder.weights!r} knows the ids of one"
    f" tokenizer; set data.tokenizer = {model.decoder.weights!r}",
  )


def _check_pool(data: data_config.DataConfig, train: TrainConfig) -> None:
  """Checks the pool of pictures for the rows of a step."""
  _require(
    data.packing != "none" or (data.pool_rows == 1 and not data.pool_tiles),
    "data.pool_rows and data.pool_tiles are of packed rows; set data.packing ="
    " 'first_fit'",
  )
  rows = train.batch_size // train.accumulation
  _require(
    rows % data.pool_rows == 0,
    f"data.pool_rows = {data.pool_rows} does not divide the {rows} rows of a"
    " micro-batch (train.batch_size / train.accumulation)",
  )


def from_config_dict(
  raw: Mapping[str, Any] | config_dict.ConfigDict,
) -> Config:
  """Reads a ConfigDict (or any mapping) into a checked `Config`.

  Raises:
    ConfigError: an unknown key (with what was probably meant), a wrong type,
      a value outside its choices or bounds, or a combination that makes no
      sense.
  """
  config = parse(raw)
  config.validate()
  return config


def parse(raw: Mapping[str, Any] | config_dict.ConfigDict) -> Config:
  """As `from_config_dict`, but for combinations: overrides may still come."""
  if isinstance(raw, config_dict.ConfigDict):
    raw = raw.to_dict()
  return fields.read(Config, raw, "")


def of_saved(raw: Mapping[str, Any]) -> Config:
  """The checked config that a file written here holds, of any schema.

  Before schema 2 of a run, and 3 of a checkpoint and a model, the options of
  EmojiScenes stood among the fields of every source.
  """
  raw = {k: dict(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
  data, evaluation = raw.get("data"), raw.get("eval")
  if isinstance(data, dict) and "options" not in data:
    moved = {k: data.pop(k) for k in ("curriculum", "captions") if k in data}
    data["options"] = moved if data.get("source") == "emoji_scenes" else {}
  if isinstance(evaluation, dict):
    for name in ("samples", "other_samples"):
      old = name.replace("samples", "canvases")
      if old in evaluation:
        evaluation[name] = evaluation.pop(old)
  return from_config_dict(raw)


def to_dict(config: Any) -> dict[str, Any]:
  """Plain nested dict of a config, fit for JSON."""
  return dataclasses.asdict(config)
