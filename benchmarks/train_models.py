"""One LLaVA on both sides of a training step: ours, and transformers'.

CLIP's tower and a Qwen2 decoder with random weights, written by transformers
and read by `gaze_jax.weights`. A row is a picture and text, of which the last
tokens are an answer.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import small_model
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.layout import budgets
from gaze_jax.layout import row as row_lib
from gaze_jax.train import flops
from gaze_jax.train import optimizer as optimizer_lib
from gaze_jax.train import state as state_lib
from gaze_jax.train import step as step_lib
from gaze_jax.weights import load as load_lib

torch, transformers = small_model.torch, small_model.transformers

CONTEXT, ROUTED = 4, 0.1  # context tokens of a picture; share of its regions
_BEFORE = 16  # tokens of text before the picture
_PATCH, _IMAGE = 14, 3  # pixels of a patch; the id that stands for a token
_LEARNING_RATE = 1e-4
PEERS = ("sdpa", "eager")  # forms of attention that transformers has


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of the model and of a batch.

  Attributes:
    width: of the decoder, whose heads have 64 channels.
    depth: its layers.
    mlp: hidden width of its MLP.
    kv_heads: its KV heads.
    vocabulary: tokens, in a table and in a head.
    vision_width: of the tower; heads of 64, and an MLP four times as wide.
    vision_depth: its layers.
    side: of a picture in patches.
    slots: of a row.
    answers: of them, the tokens that are scored.
    rows: of a batch.
  """

  width: int = 512
  depth: int = 8
  mlp: int = 1536
  kv_heads: int = 2
  vocabulary: int = 8000
  vision_width: int = 256
  vision_depth: int = 6
  side: int = 24
  slots: int = 1024
  answers: int = 300
  rows: int = 4

  @property
  def visual(self) -> int:
    """Visual tokens of a row."""
    return self.side**2


SHAPES = {
  "llava-38m": Shape(),
  "tiny": Shape(  # for tests
    width=128,
    depth=2,
    mlp=192,
    kv_heads=1,
    vocabulary=200,
    vision_width=64,
    vision_depth=2,
    side=12,
    slots=192,
    answers=12,
    rows=2,
  ),
}


@dataclasses.dataclass(frozen=True)
class Text:
  """What a batch holds: token ids int64 [B, .] and pictures in pixels.

  Attributes:
    before: ids before the picture.
    after: ids after it, answers last.
    pixels: float32 [B, height, width, 3].
  """

  before: np.ndarray
  after: np.ndarray
  pixels: np.ndarray


def write(directory: pathlib.Path, shape: Shape) -> None:
  """Writes the checkpoint, in transformers' format."""
  transformers.utils.logging.disable_progress_bar()
  torch.manual_seed(0)
  model = transformers.LlavaForConditionalGeneration(_config(shape))
  model.save_pretrained(directory)


def draw(shape: Shape) -> Text:
  """A batch; the same for each side."""
  rng = np.random.default_rng(0)
  text = shape.slots - shape.visual
  ids = rng.integers(_IMAGE + 1, shape.vocabulary, (shape.rows, text))
  side = shape.side * _PATCH
  pixels = rng.normal(size=(shape.rows, side, side, 3)).astype(np.float32)
  return Text(ids[:, :_BEFORE], ids[:, _BEFORE:], pixels)


@dataclasses.dataclass(frozen=True)
class Step:
  """A training step of ours or of theirs.

  Attributes:
    loss: of the first step, before any update.
    call: takes one more, waits for it, and returns its loss.
    compiled: the program; None of theirs.
    flops: of its products, forward and backward; 0 of theirs.
    read: the share of visual entries that text reads.
  """

  loss: float
  call: Callable[[], float]
  compiled: Any = None
  flops: float = 0.0
  read: float = 1.0


def ours(
  directory: pathlib.Path, shape: Shape, text: Text, *, routed: bool
) -> Step:
  """Our step, dense or routed.

  Args:
    directory: from `write`.
    shape: of the model.
    text: the batch.
    routed: whether text reads a share of the regions, and context tokens.
  """
  config, params = load_lib.load(directory)
  if routed:
    spread = jax.random.normal(jax.random.key(0), (CONTEXT, shape.width))
    params["projector"] |= {"context": 0.02 * spread}
  config = _ours_config(config, shape, routed=routed)
  optimizer = optimizer_lib.make(config.train)
  held = state_lib.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
  )
  batch = jax.device_put(_batch(config, shape, text))
  share = round(config.model.gaze.ratio * budgets.RATIO_PARTS)
  budget = jnp.full(shape.rows, share, jnp.int32)
  step = step_lib.make(config, optimizer)
  compiled = step.lower(held, batch, budget, {}).compile()

  def call() -> dict[str, Any]:
    nonlocal held
    held, numbers = compiled(held, batch, budget, {})
    return jax.block_until_ready(numbers)

  first = call()
  return Step(
    loss=float(first["loss"]),
    call=lambda: float(call()["loss"]),
    compiled=compiled,
    flops=flops.count(config, {}, params).model,
    read=float(first["visual_kv_fraction"]),
  )


def _ours_config(
  config: config_lib.Config, shape: Shape, *, routed: bool
) -> config_lib.Config:
  gaze = dataclasses.replace(
    config.model.gaze, dense_layers=tuple(range(shape.depth))
  )
  if routed:
    gaze = config_lib.GazeConfig(
      budget="ratio", ratio=ROUTED, context_tokens=CONTEXT
    )
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, gaze=gaze),
    data=dataclasses.replace(
      config.data, sequence_length=shape.slots, answer_slots=shape.answers
    ),
    train=config_lib.TrainConfig(
      batch_size=shape.rows,
      learning_rate=_LEARNING_RATE,
      warmup_steps=0,
      schedule="constant",
    ),
  )


def _batch(config: config_lib.Config, shape: Shape, text: Text) -> types.Batch:
  """Rows of `text`; with context tokens the text after them is cut short."""
  row_shape = row_lib.row_shape(config)
  rows = []
  for before, after in zip(text.before, text.after, strict=True):
    asked = after[config.model.gaze.context_tokens : -shape.answers]
    parts = [
      row_lib.Text(before.tolist()),
      row_lib.Unit(shape.side, shape.side),
      row_lib.Text(asked.tolist()),
      row_lib.Text(after[-shape.answers :].tolist(), question=0),
    ]
    rows.append(row_lib.lay_out(parts, row_shape))
  return row_lib.make_batch(rows, text.pixels[:, None])


def theirs(
  directory: pathlib.Path, shape: Shape, text: Text, attention: str
) -> Step:
  """transformers' step with one of its forms of attention."""
  model = transformers.LlavaForConditionalGeneration.from_pretrained(
    directory,
    dtype=torch.float32,
    local_files_only=True,
    attn_implementation=attention,
  ).train()
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=_LEARNING_RATE,
    betas=(0.9, 0.95),
    weight_decay=0.01,
    fused=True,
  )
  image = np.full((shape.rows, shape.visual), _IMAGE)
  ids = np.concatenate([text.before, image, text.after], axis=1)
  labels = np.full_like(ids, -100)
  labels[:, -shape.answers :] = ids[:, -shape.answers :]
  inputs = dict(
    input_ids=torch.from_numpy(ids),
    labels=torch.from_numpy(labels),
    attention_mask=torch.ones(ids.shape, dtype=torch.long),
    pixel_values=torch.from_numpy(text.pixels.transpose(0, 3, 1, 2).copy()),
  )

  def call() -> float:
    optimizer.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  return Step(call(), call)


def _config(shape: Shape) -> Any:
  return transformers.LlavaConfig(
    vision_config=dict(
      model_type="clip_vision_model",
      hidden_size=shape.vision_width,
      intermediate_size=4 * shape.vision_width,
      num_hidden_layers=shape.vision_depth,
      num_attention_heads=shape.vision_width // 64,
      image_size=shape.side * _PATCH,
      patch_size=_PATCH,
    ),
    text_config=dict(
      model_type="qwen2",
      vocab_size=shape.vocabulary,
      hidden_size=shape.width,
      intermediate_size=shape.mlp,
      num_hidden_layers=shape.depth,
      num_attention_heads=shape.width // 64,
      num_key_value_heads=shape.kv_heads,
      tie_word_embeddings=False,
    ),
    tie_word_embeddings=False,
    image_token_index=_IMAGE,
    image_seq_length=shape.visual,
    vision_feature_layer=-1,  # all layers of the tower are used
  )
