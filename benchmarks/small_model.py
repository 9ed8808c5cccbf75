"""A small LLaVA-1.5 with random weights, as a checkpoint of transformers.

CLIP's tower of 336 pixels and patches of 14, so 576 visual tokens an image; a
projector; and a Llama of 8 layers with 8 query heads and 4 KV heads of 64; or
whatever a `Shape` says. The tokenizer is the one that ships with gaze_jax.
"""

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
from PIL import Image

from gaze_jax import errors
from gaze_jax.data import tokenizer as tokenizer_lib

try:
  import torch
  import transformers
  from transformers.models.llava import image_processing_pil_llava
except ImportError:
  torch = transformers = None

PATCH = 14


def check_installed() -> None:
  """Refuses to go on without what makes the model.

  Raises:
    errors.GazeError: PyTorch or transformers is not installed.
  """
  if transformers is None:
    raise errors.GazeError(
      "the model is one of transformers, which is not installed here, or"
      " PyTorch is not: pip install -r requirements-reference.txt"
    )


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of the decoder and of the tower.

  Attributes:
    width: of the decoder; its heads are width / 64, half as many KV heads.
    head_dim: of a head.
    family: of the decoder, "llama" or "qwen3".
    vocabulary: rows of the table of embeddings; None for the tokenizer's. No
      token past those is ever said.
    depth: layers of the decoder.
    mlp: hidden width of its MLP.
    vision_width: of the tower; heads of 64, and an MLP four times as wide.
    vision_depth: its layers, of which the last is not used, as in LLaVA.
    side: of an image, in pixels.
  """

  width: int = 512
  head_dim: int = 64
  family: str = "llama"
  vocabulary: int | None = None
  depth: int = 8
  mlp: int = 1536
  vision_width: int = 256
  vision_depth: int = 7
  side: int = 336

  @property
  def tokens(self) -> int:
    """Visual tokens of an image."""
    return (self.side // PATCH) ** 2


def write(directory: pathlib.Path, shape: Shape) -> None:
  """Writes the checkpoint: weights, configs, processor and tokenizer."""
  transformers.utils.logging.disable_progress_bar()
  torch.manual_seed(0)
  model = transformers.LlavaForConditionalGeneration(_config(shape)).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      p.copy_(_weight(name, p))
  model.generation_config = transformers.GenerationConfig(
    bos_token_id=_id(tokenizer_lib.BOS),
    eos_token_id=_id(tokenizer_lib.EOS),
    pad_token_id=_id(tokenizer_lib.PAD),
  )
  model.save_pretrained(directory)
  processor(shape).save_pretrained(directory)
  # Written as it is: the library that saves a processor may rewrite it.
  shutil.copyfile(tokenizer_lib.SHIPPED, directory / "tokenizer.json")


def load(directory: pathlib.Path, shape: Shape) -> tuple[Any, Any]:
  """The model and the processor as a user of transformers has them."""
  model = transformers.LlavaForConditionalGeneration.from_pretrained(
    directory, dtype=torch.float32, local_files_only=True
  )
  return model.eval(), processor(shape)


def pictures(count: int) -> list[Image.Image]:
  """Smooth and coloured pictures of 480 x 360 pixels, no two alike."""
  out = []
  for seed in range(count):
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    picture = Image.fromarray(cells)
    out.append(picture.resize((480, 360), Image.Resampling.BICUBIC))
  return out


def beginning(images: int) -> str:
  """What transformers' processor is given for the pictures of a prompt."""
  return tokenizer_lib.BOS + tokenizer_lib.IMAGE * images


def turn(question: str) -> str:
  """What follows them: our chat format, written out."""
  return f"{tokenizer_lib.USER} {question}{tokenizer_lib.ASSISTANT}"


def _config(shape: Shape) -> Any:
  heads = shape.width // 64
  return transformers.LlavaConfig(
    vision_config=dict(
      model_type="clip_vision_model",
      hidden_size=shape.vision_width,
      intermediate_size=4 * shape.vision_width,
      num_hidden_layers=shape.vision_depth,
      num_attention_heads=shape.vision_width // 64,
      image_size=shape.side,
      patch_size=PATCH,
    ),
    text_config=dict(
      model_type=shape.family,
      vocab_size=shape.vocabulary or tokenizer_lib.Tokenizer.load().size,
      hidden_size=shape.width,
      intermediate_size=shape.mlp,
      num_hidden_layers=shape.depth,
      num_attention_heads=heads,
      num_key_value_heads=max(1, heads // 2),
      head_dim=shape.head_dim,
      max_position_embeddings=16_384,
    ),
    image_token_index=_id(tokenizer_lib.IMAGE),
    image_seq_length=shape.tokens,
  )


def _weight(name: str, p: Any) -> Any:
  """Numbers that keep the scale of what goes through a layer.

  Queries are drawn twice as large, so that attention is far from a mean. The
  head is 0 for special tokens, so that no answer ends early and none is an
  image, and for what is no token of the tokenizer.
  """
  if p.ndim == 1:
    return torch.ones_like(p) if name.endswith("weight") else 0 * p
  w = torch.randn_like(p)
  if "embed_tokens" in name:
    return w
  w *= (2 if "q_proj" in name else 1) * p[0].numel() ** -0.5
  if name.endswith("lm_head.weight"):
    w[: len(tokenizer_lib.SPECIAL)] = 0
    w[tokenizer_lib.Tokenizer.load().size :] = 0
  return w


def processor(shape: Shape) -> Any:
  """transformers' own, on PIL: no torchvision is needed."""
  size = dict(height=shape.side, width=shape.side)
  pixels = image_processing_pil_llava.LlavaImageProcessorPil(
    size=dict(shortest_edge=shape.side), crop_size=size
  )
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(tokenizer_lib.SHIPPED),
    image_token=tokenizer_lib.IMAGE,
    pad_token=tokenizer_lib.PAD,
    eos_token=tokenizer_lib.EOS,
  )
  return transformers.LlavaProcessor(
    pixels,
    tokenizer,
    patch_size=PATCH,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
  )


def _id(token: str) -> int:
  return tokenizer_lib.SPECIAL.index(token)
