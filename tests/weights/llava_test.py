"""LLaVA from PIL images and text to logits, against transformers.

Tiny random models: squares of 28 pixels, patches of 7, so 4 x 4 tokens.
"""

import dataclasses
import functools
import json
import pathlib

import checkpoints
import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers
from PIL import Image

import compare
import raw_prompts
import read_rows
from gaze_jax import config as config_lib
from gaze_jax.data import prompts
from gaze_jax.layout import row as row_lib
from gaze_jax.models import cached
from gaze_jax.models import mllm
from gaze_jax.weights import errors
from gaze_jax.weights import hf
from gaze_jax.weights import load
from gaze_jax.weights import store
from gaze_jax.weights.families import llava
from gaze_jax.weights.families import registry

PINPOINTS = [[28 * i, 28 * j] for i in (1, 2, 3) for j in (1, 2, 3)]
MEAN, STD = checkpoints.MEAN, checkpoints.STD
VOCABULARY = 300
IMAGE, VIDEO = VOCABULARY - 2, VOCABULARY - 1
# Images by what is special about their aspect, height and width.
SIZES = {
  "one square": (28, 28),
  "wide": (40, 83),
  "tall, odd": (91, 33),
  "three by three, shrunk": (200, 190),
  "a thin line": (3, 170),
  "tiny": (2, 5),
}
ANSWER = "it is there"
# One shape for many requests, so that one program serves them.
SHAPE = row_lib.RowShape(
  slots=192,
  units=3,
  unit_tokens=16,
  regions=16,
  region_length=36,
  answer_slots=32,
  region=(6, 6, 1),
  context_tokens=0,
  tiles=10,
  largest_unit=156,
  taps=4,
)

_apply = jax.jit(mllm.apply, static_argnames="config")
_extend = jax.jit(cached.extend, static_argnames="config")
_read = functools.partial(read_rows.read, capacity=64)


@dataclasses.dataclass
class Pair:
  """A model of transformers, and ours from its checkpoint."""

  theirs: torch.nn.Module
  directory: pathlib.Path
  config: config_lib.ModelConfig
  params: mllm.Params
  tokenizer: tokenizers.Tokenizer


def make_pair(directory, make, hf_config, processor) -> Pair:
  theirs = checkpoints.drawn(make, hf_config, 0.2)
  theirs.save_pretrained(directory)
  processor.save_pretrained(directory)
  config, params = load.load(directory)
  tokenizer = checkpoints.byte_tokenizer(VOCABULARY)
  return Pair(theirs, directory, config.model, params, tokenizer)


@pytest.fixture(scope="module")
def onevision(tmp_path_factory) -> Pair:
  return make_pair(
    tmp_path_factory.mktemp("onevision"),
    checkpoints.onevision,
    checkpoints.onevision_config(
      VOCABULARY,
      image_grid_pinpoints=PINPOINTS,
      vision_aspect_ratio="anyres_max_4",
    ),
    checkpoints.onevision_pixels(PINPOINTS),
  )


@pytest.fixture(scope="module")
def clip_llava(tmp_path_factory) -> Pair:
  return make_pair(
    tmp_path_factory.mktemp("llava"),
    checkpoints.llava,
    checkpoints.llava_config(VOCABULARY),
    checkpoints.llava_pixels(),
  )


def their_processor(pair: Pair):
  """The processor of transformers with our tiny tokenizer."""
  if pair.config.tiling.kind == "none":
    return checkpoints.llava_processor(VOCABULARY)
  return checkpoints.onevision_processor(VOCABULARY, PINPOINTS)


def their_logits(pair: Pair, inputs) -> tuple[np.ndarray, np.ndarray]:
  """Logits [S, V] and ids [S] of one row."""
  with torch.no_grad():
    logits = pair.theirs(**inputs).logits[0].numpy()
  return inputs["input_ids"][0].numpy(), logits


def scored(request: prompts.Prompt) -> prompts.Prompt:
  """Asks for the logits before every token of text but the first."""
  parts = []
  for i, part in enumerate(request.parts):
    if isinstance(part, row_lib.Text):
      ids = part.ids
      if not i:
        parts.append(row_lib.Text(ids[:1]))
        ids = ids[1:]
      part = row_lib.Text(ids, question=0)
    parts.append(part)
  return dataclasses.replace(request, parts=tuple(parts))


def our_logits(pair: Pair, request, shape=None) -> np.ndarray:
  """[tokens, V]: one for each token of text but the first."""
  batch = prompts.batch([scored(request)], pair.config, shape)
  budget = np.array([1000], np.int32)
  out = _apply(pair.params, pair.config, batch, budget)
  return np.asarray(out.logits)[0][batch.answer_slots[0] >= 0]


def same_logits(pair: Pair, inputs, request, shape=None) -> None:
  ids, logits = their_logits(pair, inputs)
  visual = sum(p.tokens for p in request.parts if isinstance(p, row_lib.Unit))
  assert visual == ((ids == IMAGE) | (ids == VIDEO)).sum()
  text = np.flatnonzero((ids != IMAGE) & (ids != VIDEO))
  text = text[text > 0]
  want, got = logits[text - 1], our_logits(pair, request, shape)
  assert want.std() > 0.1
  compare.close(got, want)


@pytest.mark.parametrize("name", SIZES)
def test_one_image_of_any_aspect_gives_their_logits(onevision, name):
  prompt, image = (
    "see <image>\nwhat?" + ANSWER,
    checkpoints.picture(SIZES[name]),
  )
  inputs = their_processor(onevision)(
    text=prompt, images=[[image]], return_tensors="pt"
  )
  request = raw_prompts.make(
    prompt, onevision.tokenizer, onevision.config, images=[np.asarray(image)]
  )
  same_logits(onevision, inputs, request, SHAPE)


def test_the_smallest_row_gives_the_same_logits(onevision):
  prompt, image = "<image>" + ANSWER, checkpoints.picture(SIZES["wide"])
  request = raw_prompts.make(
    prompt, onevision.tokenizer, onevision.config, images=[np.asarray(image)]
  )
  batch = prompts.batch([request], onevision.config)
  assert batch.blend is None and batch.images.shape[1] == 7
  want = our_logits(onevision, request, SHAPE)
  compare.close(our_logits(onevision, request), want)


def test_several_images_give_their_logits(onevision):
  prompt = "<image> and <image><image>?" + ANSWER
  sizes = [(30, 61), (28, 28), (77, 20)]
  images = [checkpoints.picture(s, i) for i, s in enumerate(sizes)]
  inputs = their_processor(onevision)(
    text=prompt, images=[images], return_tensors="pt"
  )
  request = raw_prompts.make(
    prompt,
    onevision.tokenizer,
    onevision.config,
    images=list(map(np.asarray, images)),
  )
  same_logits(onevision, inputs, request, SHAPE)


def test_a_video_gives_their_logits(onevision):
  prompt = "a <video> b" + ANSWER
  frames = [checkpoints.picture((40, 50), i) for i in range(3)]
  # Their processor needs torchvision; this is what it says it does.
  pixels = [f.resize((28, 28), Image.Resampling.BICUBIC) for f in frames]
  pixels = (np.stack(pixels) / 255 - np.array(MEAN)) / np.array(STD)
  pixels = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
  expanded = prompt.replace("<video>", "<video>" * (3 * 2 * 2 + 1))
  inputs = dict(
    input_ids=torch.tensor([onevision.tokenizer.encode(expanded).ids]),
    pixel_values_videos=pixels[None],
  )
  request = raw_prompts.make(
    prompt,
    onevision.tokenizer,
    onevision.config,
    videos=[list(map(np.asarray, frames))],
  )
  same_logits(onevision, inputs, request, SHAPE)


def test_text_alone_gives_their_logits(onevision):
  ids = onevision.tokenizer.encode("no picture" + ANSWER).ids
  request = raw_prompts.make(
    "no picture" + ANSWER, onevision.tokenizer, onevision.config
  )
  assert prompts.batch([request], onevision.config).images is None
  same_logits(onevision, dict(input_ids=torch.tensor([ids])), request)


@pytest.mark.parametrize("size", [(28, 28), (33, 90), (61, 28)])
def test_clip_llava_gives_their_logits(clip_llava, size):
  prompt, image = "see <image>\nwhat?" + ANSWER, checkpoints.picture(size)
  inputs = their_processor(clip_llava)(
    text=prompt, images=[image], return_tensors="pt"
  )
  request = raw_prompts.make(
    prompt, clip_llava.tokenizer, clip_llava.config, images=[np.asarray(image)]
  )
  same_logits(clip_llava, inputs, request)


# How each naming names what is in memory, longest first.
RENAMED = {
  "A": {
    "model.language_model.": "model.",
    "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "model.multi_modal_projector.linear_1": "model.mm_projector.0",
    "model.multi_modal_projector.linear_2": "model.mm_projector.2",
  },
  "B": {
    "lm_head": "language_model.lm_head",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.": "",
  },
  "B'": {
    "lm_head": "language_model.lm_head",
    "model.language_model.": "language_model.model.",
    "model.": "",
  },
  "C": {"model.vision_tower.": "model.vision_tower.vision_model."},
  "D": {},
}


def rename(name: str, table) -> str:
  for old in sorted(table, key=len, reverse=True):
    if name.startswith(old):
      return table[old] + name.removeprefix(old)
  return name


def saved_in(naming, pair: Pair, directory, raw=None) -> pathlib.Path:
  """The checkpoint with the tensors by a naming."""
  tensors = {
    rename(name, RENAMED[naming]): tensor.numpy().copy()
    for name, tensor in pair.theirs.state_dict().items()
  }
  safetensors.numpy.save_file(tensors, directory / "model.safetensors")
  raw = raw or read(pair.directory / "config.json")
  (directory / "config.json").write_text(json.dumps(raw))
  processor = (pair.directory / "preprocessor_config.json").read_text()
  (directory / "preprocessor_config.json").write_text(processor)
  return directory


def read(file: pathlib.Path):
  return json.loads(file.read_text())


def assert_same(params, wanted) -> None:
  assert jax.tree.structure(params) == jax.tree.structure(wanted)
  for got, want in zip(
    jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", RENAMED)
def test_every_naming_gives_the_same_bits(onevision, tmp_path, name):
  source = hf.open_checkpoint(saved_in(name, onevision, tmp_path))
  assert source.naming.split()[0] == name
  assert source.config.model == onevision.config
  assert_same(store.load(source.leaves), onevision.params)


def flat_config(tower: pathlib.Path, **changes):
  """The same model as LLaVA's own code describes it."""
  raw = dict(
    checkpoints.TEXT,
    vocab_size=VOCABULARY,
    model_type="llava",
    architectures=["LlavaQwenForCausalLM"],
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=False,
    mm_vision_tower=str(tower),
    mm_projector_type="mlp2x_gelu",
    mm_vision_select_layer=-2,
    mm_patch_merge_type="spatial_unpad",
    mm_spatial_pool_mode="bilinear",
    mm_newline_position="one_token",
    image_aspect_ratio="anyres_max_4",
    image_grid_pinpoints="(1x1),...,(3x3)",
  )
  return raw | changes


def test_the_flat_config_of_llavas_own_code(onevision, tmp_path):
  # LLaVA names the whole tower, and leaves its last layer out.
  tower, whole = tmp_path / "tower", tmp_path / "whole"
  tower.mkdir(), whole.mkdir()
  layers = dict(checkpoints.SIGLIP, num_hidden_layers=3)
  (tower / "config.json").write_text(json.dumps(layers))
  source = hf.open_checkpoint(
    saved_in("A", onevision, whole, flat_config(tower))
  )
  assert source.naming.startswith("A")
  assert source.config.model == onevision.config
  assert_same(store.load(source.leaves), onevision.params)


def test_the_towers_that_everybody_uses_are_known_by_name():
  raw = flat_config(
    "google/siglip-so400m-patch14-384", image_aspect_ratio="anyres_max_9"
  )
  model = llava.config(raw)
  v = model.vision
  assert (v.image_size, v.grid, v.depth, v.width) == (384, 27, 26, 1152)
  assert (v.hidden_state, v.mean) == (-1, (0.5, 0.5, 0.5))
  assert model.tiling.pinpoints[5] == (768, 1152)
  raw = flat_config("openai/clip-vit-large-patch14-336") | dict(
    architectures=["LlavaLlamaForCausalLM"], image_aspect_ratio="square"
  )
  model = llava.config(raw)
  v = model.vision
  assert (v.tokens, v.depth, v.hidden_state, v.resize) == (576, 24, -2, "crop")
  assert model.tiling.kind == "none" and not model.decoder.qkv_bias


def test_defaults_are_those_of_transformers(clip_llava):
  for kind in ("llava_onevision", "llava"):
    theirs = transformers.AutoConfig.for_model(kind)
    written = theirs.to_dict()
    assert llava.config(dict(model_type=kind)) == llava.config(written)


def gaze_config(pair: Pair, **gaze):
  changed = dataclasses.replace(pair.config.gaze, region=(3, 3, 1), **gaze)
  return dataclasses.replace(pair.config, gaze=changed)


def dense_request(pair: Pair):
  """A prompt with an image in tiles, their logits, and the ids to go on."""
  prompt, image = "see <image>\nwhat?", checkpoints.picture((91, 33))
  inputs = their_processor(pair)(
    text=prompt + ANSWER, images=[[image]], return_tensors="pt"
  )
  request = raw_prompts.make(
    prompt, pair.tokenizer, pair.config, images=[np.asarray(image)]
  )
  _, logits = their_logits(pair, inputs)
  answer = pair.tokenizer.encode(ANSWER).ids
  return request, logits[-len(answer) - 1 :], answer


@pytest.mark.few(1)
@pytest.mark.parametrize(
  "gaze",
  [
    dict(implementation="masked", decode_implementation="masked"),
    dict(
      implementation="chunked",
      decode_implementation="gather",
      chunk=48,
      budget="fixed",
    ),
  ],
  ids=lambda gaze: ", ".join(map(str, gaze.values())),
)
def test_a_dense_model_becomes_a_gaze_model(onevision, gaze):
  config = gaze_config(onevision, **gaze)
  request, want, answer = dense_request(onevision)
  budget = np.array([1000], np.int32)
  batch = prompts.batch([request], config)
  assert (batch.region_slots[0] >= 0).any(-1).sum() > 4
  cache, logits, _ = _read(onevision.params, config, batch, budget)
  compare.close(logits[0], want[0])
  tokens = np.array([answer], np.int32)
  _, logits, _ = _extend(onevision.params, config, cache, tokens, budget)
  compare.close(logits[0], want[1:])


def test_fewer_regions_give_other_logits(onevision):
  config = gaze_config(onevision, budget="fixed")
  request, want, _ = dense_request(onevision)
  batch = prompts.batch([request], config)
  seen = []
  for k in (0, 1, 3, 100):
    budget = np.array([k], np.int32)
    _, logits, traced = _read(onevision.params, config, batch, budget)
    assert np.isfinite(logits).all()
    assert traced.chosen.sum(-1).max() == min(
      k, (batch.region_slots[0] >= 0).any(-1).sum()
    )
    seen.append(np.abs(np.asarray(logits[0]) - want[0]).max())
  assert min(seen[:-1]) > 1e-3
  compare.close(logits[0], want[0])


@pytest.mark.nightly
def test_a_whole_grid_of_tiles_is_one_unit_of_attention(onevision):
  """The span that is looked through is that of the largest grid."""
  request, _, _ = dense_request(onevision)
  request = scored(request)
  logits = []
  for implementation in ("masked", "chunked"):
    config = gaze_config(
      onevision,
      visual_attention="own_unit",
      implementation=implementation,
      chunk=48,
    )
    batch = prompts.batch([request], config)
    budget = np.array([1000], np.int32)
    logits.append(_apply(onevision.params, config, batch, budget).logits)
  compare.close(logits[0], logits[1])


@pytest.mark.nightly
def test_rows_of_several_requests_are_each_as_alone(onevision):
  sizes = [(91, 33), (28, 28), None]
  made = []
  for i, size in enumerate(sizes):
    images = [checkpoints.picture(size, i)] if size else []
    prompt = f"row {i} " + "<image>" * len(images) + "?"
    made.append(
      raw_prompts.make(
        prompt,
        onevision.tokenizer,
        onevision.config,
        images=list(map(np.asarray, images)),
      )
    )
  shape = prompts.shape_of(made, onevision.config)
  run = lambda some: _read(
    onevision.params,
    onevision.config,
    prompts.batch(some, onevision.config, shape),
    np.full(len(some), 1000, np.int32),
  )[1]
  together = run(made)
  for i, one in enumerate(made):
    compare.close(run([one])[0], together[i])


@pytest.mark.parametrize("kind", ["onevision", "clip_llava"])
def test_the_config_goes_back(request, kind):
  pair = request.getfixturevalue(kind)
  raw = llava.to_hf(pair.config)
  again = llava.config(raw, llava.preprocessor_to_hf(pair.config))
  # What is exported has the layers that are run, and no more.
  tower = dataclasses.replace(
    pair.config.vision, depth=pair.config.vision.layers_used, hidden_state=-1
  )
  assert again == dataclasses.replace(pair.config, vision=tower)
  theirs = transformers.AutoConfig.for_model(**raw)
  assert type(theirs) is type(pair.theirs.config)


def test_a_siglip_with_a_qwen3_goes_out_as_a_llava(onevision):
  decoder = dataclasses.replace(
    onevision.config.decoder, qkv_bias=False, qk_norm=True
  )
  model = dataclasses.replace(
    onevision.config, decoder=decoder, tiling=config_lib.TilingConfig()
  )
  raw = llava.to_hf(model)
  theirs = transformers.LlavaForConditionalGeneration(
    transformers.AutoConfig.for_model(**raw)
  )
  assert theirs.config.text_config.model_type == "qwen3"
  assert theirs.config.image_token_id == IMAGE + 1
  assert llava.config(raw).decoder == decoder
  with pytest.raises(errors.ConversionError, match="projector.positions"):
    projector = dataclasses.replace(model.projector, positions="row_column")
    llava.to_hf(dataclasses.replace(model, projector=projector))


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(projector_hidden_act="relu"), "projector_hidden_act = 'relu'"),
    (dict(multimodal_projector_bias=False), "multimodal_projector_bias"),
    (dict(vision_feature_layer=[-2, -1]), r"vision_feature_layer = \[-2, -1\]"),
    (dict(vision_feature_layer=4), "vision_feature_layer = 4"),
    (dict(vision_feature_layer=-5), "vision_feature_layer = -5"),
    (
      dict(vision_feature_select_strategy="default"),
      "vision_feature_select_strategy = 'default'",
    ),
    (dict(vision_aspect_ratio="square"), "vision_aspect_ratio = 'square'"),
    (dict(image_grid_pinpoints=[[28, 30]]), r"\[28, 30\]"),
    (dict(image_grid_pinpoints=[]), "image_grid_pinpoints is empty"),
    (dict(model_type="llava_next"), "model_type = 'llava_next'"),
    (dict(text_config=dict(model_type="mamba")), "model_type = 'mamba'"),
  ],
)
def test_what_is_not_computed_is_refused_by_name(onevision, change, says):
  raw = read(onevision.directory / "config.json")
  with pytest.raises(errors.ConversionError, match=says):
    llava.config(raw | change)


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(mm_projector_type="linear"), "mm_projector_type = 'linear'"),
    (dict(mm_newline_position="grid"), "mm_newline_position = 'grid'"),
    (dict(mm_patch_merge_type="flat"), "mm_patch_merge_type = 'flat'"),
    (dict(image_aspect_ratio="pad"), "image_aspect_ratio = 'pad'"),
    (dict(mm_vision_tower="who/knows"), "mm_vision_tower = 'who/knows'"),
    (dict(architectures=["LlavaMpt"]), "LlavaMpt"),
    (dict(image_grid_pinpoints="many"), "image_grid_pinpoints = 'many'"),
  ],
)
def test_what_a_flat_config_may_not_ask_for(change, says):
  raw = flat_config("google/siglip-so400m-patch14-384") | change
  with pytest.raises(errors.ConversionError, match=says):
    llava.config(raw)


def test_clip_without_its_class_token_alone(clip_llava):
  raw = read(clip_llava.directory / "config.json")
  with pytest.raises(errors.ConversionError, match="select_strategy = 'full'"):
    llava.config(raw | dict(vision_feature_select_strategy="full"))


def test_a_processor_of_another_size_is_refused(onevision):
  raw = read(onevision.directory / "config.json")
  name = "LlavaOnevisionImageProcessor"
  other = dict(image_processor_type=name, size=dict(height=56, width=56))
  with pytest.raises(errors.ConversionError, match="squares of 56"):
    llava.config(raw, other)
  other = dict(
    image_processor_type=name,
    size=dict(height=28, width=28),
    image_grid_pinpoints=[[28, 28]],
  )
  with pytest.raises(errors.ConversionError, match="image_grid_pinpoints"):
    llava.config(raw, other)


def test_a_head_is_tied_if_either_config_says_so():
  for raw in (
    dict(tie_word_embeddings=True),
    dict(text_config=dict(tie_word_embeddings=True)),
  ):
    theirs = transformers.LlavaOnevisionConfig(**raw)
    assert theirs.tie_word_embeddings
    assert llava.config(raw | dict(model_type="llava_onevision")).decoder.tied
  assert not llava.config(dict(model_type="llava_onevision")).decoder.tied


@pytest.mark.parametrize("architecture", ["LlavaQwenForCausalLM", None])
def test_a_flat_config_under_its_decoders_name_is_a_llava(architecture):
  raw = flat_config("google/siglip-so400m-patch14-384")
  want = llava.config(raw)
  renamed = raw | dict(model_type="qwen2", architectures=[architecture])
  family = registry.find(renamed)
  assert family.parts == ("vision", "projector", "decoder")
  assert family.model(renamed, None) == want
  assert registry.vision_type(renamed) == "siglip_vision_model"
  # A text model that was tuned by LLaVA's code has an empty key.
  alone = renamed | dict(mm_vision_tower=None)
  assert registry.find(alone).parts == ("decoder",)
  with pytest.raises(errors.ConversionError, match="this one has none"):
    registry.find(alone | dict(model_type="llava_qwen"))
