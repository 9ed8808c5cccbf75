"""Greedy answers of the engine, reading all regions, against transformers'.

Tiny random models, whose last layers are scaled until answers vary. The
prompts are raw: `raw_prompts.make`, `reading.read`, `engine.Decoding`.
"""

import dataclasses

import numpy as np
import pytest
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

import compare
import raw_prompts
import tiers
from gaze_jax import config as config_lib
from gaze_jax.data import prompts
from gaze_jax.decode import context
from gaze_jax.decode import engine
from gaze_jax.decode import reading
from gaze_jax.models import mllm
from gaze_jax.weights import hf
from gaze_jax.weights import importing
from gaze_jax.weights import store

COUNT = 12
# 139 bytes and so tokens, which are read in two pieces.
LONG = (
  "Then the fox went over the hill, past seven old mills; why did nobody ask"
  " where it lived, or whom it had left? Say so in a few short words!"
)[:139]
IMAGE, VIDEO, VOCABULARY = 256, 257, 258
TEXT = dict(
  vocab_size=VOCABULARY,
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
PINPOINTS = [[28, 28], [28, 56], [56, 28], [56, 56]]


@dataclasses.dataclass
class Pair:
  """A model of transformers, and ours from its checkpoint."""

  theirs: torch.nn.Module
  config: config_lib.ModelConfig
  params: mllm.Params
  tokenizer: tokenizers.Tokenizer

  def ours(self, prompt, images=(), count=COUNT):
    """Ids said to a prompt."""
    request = raw_prompts.make(
      prompt, self.tokenizer, self.config, images=list(images)
    )
    batch = prompts.batch([request], self.config)
    empty = context.empty(self.config)
    # More than there are: every region is read.
    read = reading.read(
      self.params, self.config, empty, batch, 1000, room=count
    )
    decoding = engine.Decoding(
      self.params, self.config, [read], [1000], max_tokens=[count], stop=[-1]
    )
    decoding.run(count)
    assert decoding.entries(0)[0] == read.visual_tokens
    return decoding.tokens(0)

  def their_answer(self, inputs, count=COUNT):
    """What follows the prompt, with nothing that ends it."""
    if "attention_mask" not in inputs:
      inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
      said = self.theirs.generate(
        **inputs,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
      )
    compare.decided(torch.stack(said.logits))
    return said.sequences[0, inputs["input_ids"].shape[1] :].tolist()

  def agree(self, prompt, inputs, images=()):
    """The same text, and no dull one."""
    want, got = self.their_answer(inputs), self.ours(prompt, images)
    assert len(set(want)) > 3, want
    assert got == want
    assert self.tokenizer.decode(got) == self.tokenizer.decode(want)
    return got


def tiny_tokenizer():
  """All bytes, without merges, and the two marks."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {c: i for i, c in enumerate(alphabet)}
  vocabulary |= {"<image>": IMAGE, "<video>": VIDEO}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(["<image>", "<video>"])
  return tokenizer


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
  def make(kind, config, pixels=None):
    directory = tmp_path_factory.mktemp(kind.__name__)
    torch.manual_seed(0)
    theirs = kind(config).eval()
    with torch.no_grad():  # numbers that differ, in every bias and norm too
      for p in theirs.parameters():
        p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1))
    theirs.save_pretrained(directory)
    if pixels:
      pixels.save_pretrained(directory)
    source = hf.open_checkpoint(directory)
    params = store.load(importing.leaves(source))
    return Pair(theirs, source.model, params, tiny_tokenizer())

  return make


@pytest.mark.nightly
def test_a_text_model_says_what_transformers_says(pair_of):
  """Qwen3; the decoders below are Qwen2 and Llama."""
  config = transformers.Qwen3Config(**TEXT, head_dim=12)
  pair = pair_of(transformers.Qwen3ForCausalLM, config)
  said = []
  for prompt in ("what is it?", LONG):
    ids = torch.tensor([pair.tokenizer.encode(prompt).ids])
    said.append(pair.agree(prompt, dict(input_ids=ids)))
  assert said[0] != said[1]


def onevision_pixels():
  return image_processing.LlavaOnevisionImageProcessorPil(
    size=dict(height=28, width=28),
    image_grid_pinpoints=PINPOINTS,
    image_mean=(0.48, 0.45, 0.40),
    image_std=(0.26, 0.26, 0.27),
  )


@pytest.fixture(scope="module")
def onevision(pair_of):
  tower = TOWER | dict(model_type="siglip_vision_model", vision_use_head=False)
  config = transformers.LlavaOnevisionConfig(
    vision_config=tower,
    text_config=TEXT | dict(model_type="qwen2"),
    image_token_index=IMAGE,
    video_token_index=VIDEO,
    image_grid_pinpoints=PINPOINTS,
    vision_aspect_ratio="anyres_max_4",
  )
  return pair_of(
    transformers.LlavaOnevisionForConditionalGeneration,
    config,
    onevision_pixels(),
  )


@pytest.fixture(scope="module")
def llava(pair_of):
  tower = TOWER | dict(model_type="clip_vision_model", num_hidden_layers=3)
  config = transformers.LlavaConfig(
    vision_config=tower,
    text_config=TEXT | dict(model_type="llama"),
    image_token_index=IMAGE,
  )
  return pair_of(
    transformers.LlavaForConditionalGeneration, config, llava_pixels()
  )


def llava_pixels():
  return image_processing_pil_llava.LlavaImageProcessorPil(
    size=dict(shortest_edge=28), crop_size=dict(height=28, width=28)
  )


def fast_tokenizer():
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tiny_tokenizer(),
    image_token="<image>",
    video_token="<video>",
  )


class _Processor(transformers.LlavaOnevisionProcessor):
  """Theirs without a processor for videos, which would need torchvision."""

  def check_argument_for_proper_class(self, argument_name, argument):
    if argument_name != "video_processor":
      super().check_argument_for_proper_class(argument_name, argument)


def picture(height, width, seed=0):
  """Smooth and coloured, so that no part of it is like another."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
  size = (width, height)
  return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
  "prompt, sizes",
  tiers.few(
    1,
    [
      ("see <image>\nwhat?", [(40, 83)]),  # tiles of one row
      ("<image> and <image>?", [(30, 61), (28, 28)]),
    ],
  ),
  ids=["one wide image", "two images"],
)
def test_onevision_says_what_transformers_says(onevision, prompt, sizes):
  processor = _Processor(
    onevision_pixels(),
    fast_tokenizer(),
    num_image_tokens=16,
    vision_feature_select_strategy="full",
    vision_aspect_ratio="anyres_max_4",
  )
  images = [picture(*size, seed) for seed, size in enumerate(sizes)]
  prompt += " tell me:"
  inputs = processor(text=prompt, images=[images], return_tensors="pt")
  said = onevision.agree(prompt, dict(inputs), images)
  # The pictures matter.
  others = [picture(*size, seed + 9) for seed, size in enumerate(sizes)]
  assert onevision.ours(prompt, others) != said


@pytest.mark.nightly
@pytest.mark.parametrize("size", [(28, 28), (33, 90)])
def test_llava_says_what_transformers_says(llava, size):
  processor = transformers.LlavaProcessor(
    llava_pixels(),
    fast_tokenizer(),
    patch_size=7,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
  )
  prompt, image = "see <image>\nwhat is it?", picture(*size)
  inputs = processor(text=prompt, images=[image], return_tensors="pt")
  said = llava.agree(prompt, dict(inputs), [image])
  assert llava.ours(prompt, [picture(*size, 5)]) != said
