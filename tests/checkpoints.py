"""Tiny random checkpoints of transformers: decoders, towers and LLaVAs.

Squares of 28 pixels in patches of 7, so 4 x 4 tokens. The last two ids of a
vocabulary stand for images and videos.
"""

import pathlib

import numpy as np
import safetensors.numpy
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from transformers.models.llava import image_processing_pil_llava
from transformers.models.llava_onevision import (
  image_processing_pil_llava_onevision as image_processing,
)

from gaze_jax.weights import load
from gaze_jax.weights import store

TEXT = dict(
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
)
TOWER = dict(
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  image_size=28,
  patch_size=7,
)
SIGLIP = TOWER | dict(model_type="siglip_vision_model", vision_use_head=False)
CLIP = TOWER | dict(model_type="clip_vision_model", num_hidden_layers=3)
PINPOINTS = [[28, 56], [56, 28], [56, 56]]
MEAN, STD = (0.48, 0.45, 0.40), (0.26, 0.26, 0.27)


def onevision_config(vocab_size, *, text=TEXT, **changes):
  """Of a SigLIP, tiles and a Qwen2."""
  values = dict(
    vision_config=SIGLIP,
    text_config=dict(model_type="qwen2", vocab_size=vocab_size) | text,
    image_token_index=vocab_size - 2,
    video_token_index=vocab_size - 1,
    image_grid_pinpoints=PINPOINTS,
  )
  return transformers.LlavaOnevisionConfig(**values | changes)


def llava_config(vocab_size, *, text=TEXT, **changes):
  """Of a CLIP and a Llama."""
  values = dict(
    vision_config=CLIP,
    text_config=dict(model_type="llama", vocab_size=vocab_size) | text,
    image_token_index=vocab_size - 2,
  )
  return transformers.LlavaConfig(**values | changes)


def onevision(config):
  return transformers.LlavaOnevisionForConditionalGeneration(config)


def llava(config):
  return transformers.LlavaForConditionalGeneration(config)


def drawn(make, config, scale):
  """A model with numbers that differ, in every bias and norm too."""
  torch.manual_seed(0)
  model = make(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(torch.randn_like(p) * scale + (p.ndim == 1))
  return model


def onevision_pixels(pinpoints):
  return image_processing.LlavaOnevisionImageProcessorPil(
    size=dict(height=28, width=28),
    image_grid_pinpoints=pinpoints,
    image_mean=MEAN,
    image_std=STD,
  )


def llava_pixels():
  return image_processing_pil_llava.LlavaImageProcessorPil(
    size=dict(shortest_edge=28), crop_size=dict(height=28, width=28)
  )


def byte_tokenizer(vocab_size) -> tokenizers.Tokenizer:
  """All bytes, without merges, and the two marks."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {c: i for i, c in enumerate(alphabet)}
  unused = range(len(alphabet), vocab_size - 2)
  vocabulary |= {f"<unused{i}>": i for i in unused}
  vocabulary |= {"<image>": vocab_size - 2, "<video>": vocab_size - 1}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(["<image>", "<video>"])
  return tokenizer


class _Processor(transformers.LlavaOnevisionProcessor):
  """Theirs without a processor for videos, which would need torchvision."""

  def check_argument_for_proper_class(self, argument_name, argument):
    if argument_name != "video_processor":
      super().check_argument_for_proper_class(argument_name, argument)


def _fast(vocab_size):
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=byte_tokenizer(vocab_size),
    image_token="<image>",
    video_token="<video>",
  )


def onevision_processor(tokenizer, pinpoints):
  """As `llava_processor`."""
  if isinstance(tokenizer, int):
    tokenizer = _fast(tokenizer)
  return _Processor(
    onevision_pixels(pinpoints),
    tokenizer,
    num_image_tokens=16,
    vision_feature_select_strategy="full",
    vision_aspect_ratio="anyres_max_4",
  )


def llava_processor(tokenizer, **more):
  """Of a vocabulary's size, or with a tokenizer of transformers."""
  if isinstance(tokenizer, int):
    tokenizer = _fast(tokenizer)
  return transformers.LlavaProcessor(
    llava_pixels(),
    tokenizer,
    patch_size=7,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
    **more,
  )


def picture(size, seed=0) -> Image.Image:
  """Smooth and coloured, so that no part of it is like another."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
  return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def to_ours(source, to, dtype=None):
  """Converts a checkpoint."""
  store.save(load.open_directory(source, dtype=dtype), to)


def tensors_of(directory) -> dict[str, np.ndarray]:
  found = {}
  for file in sorted(pathlib.Path(directory).glob("model*.safetensors")):
    found |= safetensors.numpy.load_file(file)
  return found
