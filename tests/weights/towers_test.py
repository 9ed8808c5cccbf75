"""Vision towers of transformers: parity, names, and what is refused."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import traverse_util
from safetensors import numpy as safetensors

import compare
from gaze_jax import config as config_lib
from gaze_jax import types
from gaze_jax.models import vision
from gaze_jax.weights import errors
from gaze_jax.weights import tables
from gaze_jax.weights.families import image_processors
from gaze_jax.weights.families import towers

SIZES = dict(
  hidden_size=24,
  intermediate_size=20,
  num_hidden_layers=3,
  num_attention_heads=3,
)
SQUARE = SIZES | dict(image_size=28, patch_size=7)
TEXT = SIZES | dict(
  vocab_size=8, max_position_embeddings=4, bos_token_id=1, eos_token_id=2
)
DINO = dict(
  hidden_size=24,
  num_hidden_layers=3,
  num_attention_heads=3,
  mlp_ratio=2,
  image_size=28,
  patch_size=7,
)


def _make(name):
  """A tiny model of transformers with nothing left at zero or one."""
  t = transformers
  if name in ("siglip", "siglip2", "clip"):
    cls = {"siglip": "Siglip", "siglip2": "Siglip2", "clip": "CLIP"}[name]
    inner = SQUARE
    if name == "siglip2":
      inner = SIZES | dict(patch_size=4, num_patches=16)
    config = getattr(t, f"{cls}Config")(vision_config=inner, text_config=TEXT)
    model = getattr(t, f"{cls}Model")(config)
  else:
    model = {
      "siglip_vision_model": lambda: t.SiglipVisionModel(
        t.SiglipVisionConfig(**SQUARE)
      ),
      # 384 / 14 of so400m leaves 6 pixels over: 30 / 7 leaves 2.
      "left over": lambda: t.SiglipVisionModel(
        t.SiglipVisionConfig(**SQUARE | dict(image_size=30))
      ),
      "siglip2_vision_model": lambda: t.Siglip2VisionModel(
        t.Siglip2VisionConfig(**SIZES, patch_size=4, num_patches=16)
      ),
      "clip_vision_model": lambda: t.CLIPVisionModel(
        t.CLIPVisionConfig(**SQUARE)
      ),
      "clip with a projection": lambda: t.CLIPVisionModelWithProjection(
        t.CLIPVisionConfig(**SQUARE, projection_dim=5)
      ),
      "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**DINO)),
      "dinov2 with a classifier": lambda: t.Dinov2ForImageClassification(
        t.Dinov2Config(**DINO)
      ),
    }[name]()
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0, 0.3)
  return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """name -> (the model, its config.json, its tensors), each made once."""

  @functools.cache
  def one(name):
    model = _make(name)
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    raw = json.loads((path / "config.json").read_text())
    return model, raw, safetensors.load_file(path / "model.safetensors")

  return one


def _naming(tensors):
  """The naming whose prefix the file's names have."""
  for name, naming in towers.NAMINGS.items():
    if any(key.startswith(f"{naming['vision']}.embed") for key in tensors):
      return name
  return "bare tower"


def _entries(config, kind, naming):
  shapes = vision.param_shapes(config)
  table = towers.rules(config, kind)
  return tables.bind(table, "vision", shapes, towers.NAMINGS[naming])


def _params(config, kind, tensors):
  read = lambda name, index: tensors[name][index]
  leaves = {}
  for entry in _entries(config, kind, _naming(tensors)):
    assert {tensors[s].shape for s in entry.tensors} == {entry.tensor_shape}
    whole = tuple(slice(0, n) for n in entry.shape)
    leaves[entry.path[1:]] = entry.read(whole, read)
  return traverse_util.unflatten_dict(leaves)


def _to_torch(entries, params):
  """The way back: tensors by their names."""
  leaves = traverse_util.flatten_dict({"vision": params})
  out = {}
  for entry in entries:
    back = entry.back()
    whole = tuple(slice(0, n) for n in back.shape)
    for i, name in enumerate(entry.tensors):
      leaf = leaves[entry.path]
      leaf = leaf[i] if entry.stacked else leaf
      tensor = back.read(whole, lambda _, index, leaf=leaf: leaf[index])
      out[name] = np.ascontiguousarray(tensor)
  return out


@functools.partial(jax.jit, static_argnums=0)
def _apply(config, params, images):
  return vision.ViT(config).apply({"params": params}, images)


def _pixels(height, width):
  rng = np.random.default_rng(height)
  return rng.normal(size=(2, height, width, 3)).astype(np.float32)


def _states(model, **inputs):
  """Hidden states and the last one after the closing norm, as transformers."""
  tower = getattr(model, "vision_model", getattr(model, "dinov2", model))
  with torch.no_grad():
    out = tower(**inputs, output_hidden_states=True)
  return [s.numpy() for s in out.hidden_states], out.last_hidden_state.numpy()


@pytest.mark.few(5)
@pytest.mark.parametrize(
  ("name", "size", "interpolate"),
  [
    ("siglip_vision_model", (28, 28), False),
    ("siglip_vision_model", (42, 21), True),
    ("left over", (30, 30), False),
    ("siglip", (28, 28), False),
    ("clip_vision_model", (28, 28), False),
    ("clip_vision_model", (21, 42), True),
    ("clip", (28, 28), False),
    ("clip with a projection", (28, 28), False),
    ("dinov2", (28, 28), False),
    ("dinov2", (42, 21), False),
    ("dinov2 with a classifier", (28, 28), False),
  ],
)
def test_every_hidden_state_matches(saved, name, size, interpolate):
  model, raw, tensors = saved(name)
  config, (kind, _) = towers.config(raw), towers.tower(raw)
  images = _pixels(*size)
  inputs = {"pixel_values": torch.from_numpy(images.transpose(0, 3, 1, 2))}
  if interpolate:
    inputs["interpolate_pos_encoding"] = True
  want, last = _states(model, **inputs)
  first = int(config.class_token)
  for state in (0, 1, 3):
    c = dataclasses.replace(config, hidden_state=state)
    got = _apply(c, _params(c, kind, tensors), images)
    compare.close(got, want[state][:, first:])
  if kind == "clip_vision_model":  # its closing norm is for the pooled token
    return
  c = dataclasses.replace(config, final_norm=True)
  got = _apply(c, _params(c, kind, tensors), images)
  compare.close(got, last[:, first:])


@pytest.mark.parametrize("name", ["siglip2_vision_model", "siglip2"])
def test_every_hidden_state_of_naflex_matches(saved, name):
  model, raw, tensors = saved(name)
  config, (kind, _) = towers.config(raw), towers.tower(raw)
  config = dataclasses.replace(config, max_patches=24)
  # One column of several rows is not here: torch's antialiased resize is wrong
  # there on CPU (tests/models/positions_test.py).
  grid = np.array([[4, 4], [1, 24], [12, 2], [3, 7], [5, 2], [1, 1]], np.int32)
  rng = np.random.default_rng(1)
  pixels = rng.normal(size=(len(grid), 24, 48)).astype(np.float32)
  mask = np.arange(24) < grid.prod(1, keepdims=True)
  want, last = _states(
    model,
    pixel_values=torch.from_numpy(pixels),
    pixel_attention_mask=torch.from_numpy(mask.astype(np.int32)),
    spatial_shapes=torch.from_numpy(grid).long(),
  )
  patches = types.Patches(pixels, grid)
  for state in (0, 1, 3):
    c = dataclasses.replace(config, hidden_state=state)
    got = _apply(c, _params(c, kind, tensors), patches)
    compare.close(got[mask], want[state][mask])
  c = dataclasses.replace(config, final_norm=True)
  got = _apply(c, _params(c, kind, tensors), patches)
  compare.close(got[mask], last[mask])


ALL = (
  "siglip_vision_model",
  "siglip2_vision_model",
  "clip_vision_model",
  "dinov2",
  "siglip",
  "siglip2",
  "clip",
  "clip with a projection",
  "dinov2 with a classifier",
)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("state", [-1, 1])
def test_every_name_is_used_once_or_named(saved, name, state):
  _, raw, tensors = saved(name)
  config = dataclasses.replace(towers.config(raw), hidden_state=state)
  naming = _naming(tensors)
  entries = _entries(config, raw["model_type"], naming)
  used = [s for entry in entries for s in entry.tensors]
  assert len(used) == len(set(used)) and set(used) <= set(tensors)
  prefix = towers.NAMINGS[naming]["vision"]
  below = towers.unused(config, raw["model_type"])
  around = towers.beside(raw["model_type"])
  for name in set(tensors) - set(used):
    inner = name.removeprefix(f"{prefix}." if prefix else "")
    assert any(re.fullmatch(p, inner) for p in below) or any(
      re.fullmatch(p, name) for p in around
    ), name
  for name in used:  # nothing that is used is also set aside
    inner = name.removeprefix(f"{prefix}." if prefix else "")
    assert not any(re.fullmatch(p, inner) for p in below)
    assert not any(re.fullmatch(p, name) for p in around)


@pytest.mark.parametrize("name", ["siglip", "siglip2", "clip", "dinov2"])
def test_the_way_back_is_bitwise_equal(saved, name):
  _, raw, tensors = saved(name)
  config = dataclasses.replace(towers.config(raw), final_norm=True)
  params = _params(config, raw["model_type"], tensors)
  entries = _entries(config, raw["model_type"], _naming(tensors))
  back = _to_torch(entries, params)
  assert len(back) > 50
  for name, tensor in back.items():
    np.testing.assert_array_equal(tensor, tensors[name])


def test_old_buffers_are_dropped():
  assert re.fullmatch(towers.DROPPED[0], "embeddings.position_ids")


@pytest.mark.parametrize("name", ALL[:4])
def test_a_tower_of_ours_is_read_by_transformers(saved, name, tmp_path):
  _, raw, tensors = saved(name)
  config = dataclasses.replace(towers.config(raw), hidden_state=2)
  params = _params(config, name, tensors)
  out = {
    k.removeprefix("vision."): v for k, v in towers.filler(config, name).items()
  }
  out |= _to_torch(_entries(config, name, "bare tower"), params)
  written = towers.to_hf(config)
  (tmp_path / "config.json").write_text(json.dumps(written))
  safetensors.save_file(
    out, tmp_path / "model.safetensors", metadata={"format": "pt"}
  )
  cls = getattr(transformers, written["architectures"][0])
  model, info = cls.from_pretrained(tmp_path, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert not info["mismatched_keys"]
  again = towers.config(json.loads((tmp_path / "config.json").read_text()))
  assert again == dataclasses.replace(config, depth=2, hidden_state=-1)
  if name == "siglip2_vision_model":
    return
  images = _pixels(28, 28)
  states, _ = _states(
    model, pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2))
  )
  got = _apply(config, params, images)
  want = states[-1][:, int(config.class_token) :]
  compare.close(got, want)


@pytest.mark.parametrize("name", ALL[:4])
def test_a_tower_from_nowhere_finds_its_family(name):
  config = towers.config({"model_type": name})
  assert towers.model_type_of(config) == name
  assert towers.to_hf(config)["model_type"] == name


def test_a_tower_that_is_in_no_family_says_so():
  config = config_lib.VisionConfig(pre_norm=True)
  with pytest.raises(errors.ConversionError, match="no family.*pre_norm = Tr"):
    towers.to_hf(config)


def test_what_a_config_leaves_out_is_what_transformers_fills_in():
  t = transformers
  for cls in (
    t.SiglipVisionConfig,
    t.Siglip2VisionConfig,
    t.CLIPVisionConfig,
    t.Dinov2Config,
  ):
    whole = cls().to_dict()
    short = {"model_type": whole["model_type"]}
    assert towers.config(short) == towers.config(whole)


def test_so400m_by_hand():
  c = towers.config(
    dict(
      model_type="siglip_vision_model",
      hidden_size=1152,
      intermediate_size=4304,
      num_hidden_layers=27,
      num_attention_heads=16,
      patch_size=14,
      image_size=384,
    )
  )
  assert c == config_lib.VisionConfig(
    image_size=384,
    patch_size=14,
    width=1152,
    depth=27,
    heads=16,
    mlp_dim=4304,
    class_token=False,
    layer_scale=False,
    activation="gelu_tanh",
    norm_eps=1e-6,
    position_grid=27,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
  )
  assert c.tokens == 729
  assert towers.to_hf(c)["image_size"] == 384


CLIP = {"model_type": "clip_vision_model"}
SIGLIP = {"model_type": "siglip_vision_model"}
NAFLEX = {"model_type": "siglip2_vision_model"}
DINOV2 = {"model_type": "dinov2"}


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"model_type": "vit"}, "model_type = 'vit' is no vision tower.*dinov2"),
    ({}, "model_type = None"),
    (
      {"model_type": "clip", "vision_config": {"model_type": "chinese"}},
      "model_type = 'chinese'",
    ),
    (
      DINOV2 | {"use_swiglu_ffn": True},
      "use_swiglu_ffn = True.*False is; take",
    ),
    (DINOV2 | {"qkv_bias": False}, "qkv_bias = False"),
    (CLIP | {"num_channels": 4}, "num_channels = 4"),
    (
      CLIP | {"hidden_act": "relu"},
      "hidden_act = 'relu'.*'quick_gelu' is; take",
    ),
    (CLIP | {"patch_size": [14, 16]}, r"patch_size = \[14, 16\] is no square"),
    (SIGLIP | {"image_size": [224, 448]}, "image_size.*is no square"),
    (SIGLIP | {"image_size": "224"}, "image_size = '224' is no square"),
    (SIGLIP | {"num_attention_heads": 7}, "hidden_size = 768 is not"),
    (DINOV2 | {"head_dim": 32}, "hidden_size = 768 is not"),
    (NAFLEX | {"num_patches": 200}, "num_patches = 200 is no square"),
    (
      {"model_type": "siglip", "quantization_config": {"bits": 4}},
      "quantization_config = ",
    ),
  ],
  ids=str,
)
def test_a_config_that_is_not_computed_is_refused(raw, message):
  with pytest.raises(errors.ConversionError, match=message):
    towers.config(raw)


@pytest.mark.parametrize(
  ("change", "kind", "message"),
  [
    ({}, "siglip_vision_model", "class_token = True, layer_scale = True"),
    ({"pre_norm": True}, "dinov2", "pre_norm = True"),
    ({"max_patches": 9}, "dinov2", "max_patches = 9"),
    (
      {"class_token": False, "layer_scale": False},
      "siglip2",
      "max_patches = 0",
    ),
  ],
  ids=str,
)
def test_a_family_that_cannot_hold_a_tower_says_so(change, kind, message):
  config = dataclasses.replace(config_lib.VisionConfig(), **change)
  with pytest.raises(errors.ConversionError, match=message):
    towers.rules(config, kind)


def test_dinov2_has_a_multiple_of_its_width():
  config = dataclasses.replace(config_lib.VisionConfig(), mlp_dim=400)
  with pytest.raises(errors.ConversionError, match="mlp_dim = 400: dinov2 has"):
    towers.to_hf(config)


def _processor(raw, model_type=CLIP):
  c = towers.config(model_type, raw)
  return c.resize, c.image_size, c.mean[0], c.std[0]


def test_the_preprocessor_is_read():
  half = dict(image_mean=[0.5] * 3, image_std=[0.25] * 3)
  siglip = dict(
    image_processor_type="SiglipImageProcessor",
    size={"height": 384, "width": 384},
    resample=3,
    rescale_factor=0.00392156862745098,
    do_convert_rgb=None,
    **half,
  )
  assert _processor(siglip, SIGLIP) == ("square", 384, 0.5, 0.25)
  clip = dict(
    feature_extractor_type="CLIPFeatureExtractor",
    size=336,
    crop_size=336,
    **half,
  )
  assert _processor(clip) == ("crop", 336, 0.5, 0.25)
  # A file that leaves out everything: the defaults of its class.
  assert _processor({}) == ("crop", 224, 0.48145466, 0.26862954)
  assert _processor({}, SIGLIP) == ("square", 224, 0.5, 0.5)
  fast = {"image_processor_type": "CLIPImageProcessorFast"}
  assert _processor(fast) == _processor({})
  # As SigLIP2's files say it.
  assert towers.config(SIGLIP, siglip | {"resample": 2}).resample == "bilinear"
  # No file at all: what the family was trained with.
  assert _processor(None, DINOV2) == ("square", 224, 0.485, 0.229)
  assert _processor(None, CLIP) == _processor({})
  naflex = towers.config(NAFLEX, {"max_num_patches": 1024})
  assert naflex.max_patches == naflex.tokens == 1024
  assert naflex.position_grid == 16 and naflex.image_size == 256
  assert towers.config(NAFLEX).max_patches == 256
  assert naflex.resample == towers.config(NAFLEX).resample == "bilinear"


def test_the_table_keeps_its_size_when_pictures_have_another():
  c = towers.config(
    DINOV2 | {"image_size": 518},
    {"size": {"shortest_edge": 256}, "crop_size": 224},
  )
  assert (c.image_size, c.position_grid, c.shorter_side) == (224, 37, 256)
  assert image_processors.write(c)["size"] == {"shortest_edge": 256}
  assert towers.to_hf(c)["image_size"] == 518


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"do_resize": False}, "do_resize = False is not computed"),
    ({"use_square_size": True}, "use_square_size = True"),
    ({"do_pad": True}, "do_pad = True"),
    ({"rescale_factor": 0}, "rescale_factor = 0 is no number above 0"),
    ({"rescale_factor": "1/255"}, "rescale_factor = '1/255' is no number"),
    ({"resample": [3]}, r"resample = \[3\] is not computed"),
    ({"resample": 1}, r"resample = 1 is not computed.*3 \(bicubic\)"),
    ({"image_mean": [0.5]}, "image_mean = .*three numbers"),
    ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean = .*three numbers"),
    ({"image_mean": "0.5"}, "image_mean = .*three numbers"),
    ({"image_std": [1, 0, 1]}, "image_std = .*is not above 0"),
    ({"do_center_crop": False}, "size = .*crop_size = none"),
    ({"size": {"shortest_edge": 192}}, "size = .*192.* crop_size = 224"),
    ({"size": {"height": 256, "width": 256}}, "size = .*crop_size = 224"),
    (
      {"size": {"height": 224, "width": 336}, "do_center_crop": False},
      "size = .*is no square",
    ),
    ({"size": {"longest_edge": 224}}, "size = .*is no square"),
    (
      {"size": {"shortest_edge": 224, "longest_edge": 448}},
      "size = .*is no square",
    ),
    ({"size": {"max_height": 224, "max_width": 224}}, "size = .*is no square"),
    ({"size": True}, "shortest_edge = True is no square"),
    ({"crop_size": {"height": 224, "width": 112}}, "crop_size = .*no square"),
    (
      {"image_processor_type": "SiglipImageProcessor", "size": 224},
      "size = 224 with crop_size = none",  # the shorter side, there too
    ),
    ({"image_processor_type": "BlipImageProcessor"}, "'Blip.*is not known"),
    (
      {"image_processor_type": "Siglip2ImageProcessor", "resample": 3},
      "makes patches",
    ),
  ],
  ids=str,
)
def test_a_preprocessor_that_is_not_computed_is_refused(raw, message):
  with pytest.raises(errors.ConversionError, match=message) as caught:
    towers.config(CLIP, raw)
  assert isinstance(caught.value, image_processors.PixelsError)


@pytest.mark.parametrize(
  ("raw", "message"),
  [
    ({"patch_size": 14}, "patch_size = 14 is not that of config.json, 16"),
    ({"image_processor_type": "CLIPImageProcessor", "resample": 2}, "makes no"),
  ],
  ids=str,
)
def test_a_preprocessor_that_makes_no_such_patches_is_refused(raw, message):
  with pytest.raises(errors.ConversionError, match=message):
    towers.config(NAFLEX, raw)


@pytest.mark.parametrize("raw", [SIGLIP, NAFLEX, CLIP], ids=str)
def test_a_preprocessor_of_ours_is_read_back(raw):
  c = towers.config(raw)
  from_file = image_processors.write(c)
  assert towers.config(raw, from_file) == c
