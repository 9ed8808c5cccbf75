"""The whole way: transformers -> ours -> transformers, and two into one."""

import codecs
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import checkpoints
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from gaze_jax import cli
from gaze_jax import config as config_lib
from gaze_jax import errors as errors_lib
from gaze_jax.data import stop_tokens
from gaze_jax.layout import budgets
from gaze_jax.weights import errors
from gaze_jax.weights import exporting
from gaze_jax.weights import hf
from gaze_jax.weights import joining
from gaze_jax.weights import load
from gaze_jax.weights import store
from gaze_jax.weights import verify
from gaze_jax.weights.families import image_processors
from gaze_jax.weights.families import registry

tensors_of = checkpoints.tensors_of

ROOT = pathlib.Path(__file__).parent.parent.parent
VOCABULARY = 60
TEXT = checkpoints.TEXT | dict(vocab_size=VOCABULARY)
TOWER = dict(
  hidden_size=24,
  intermediate_size=40,
  num_hidden_layers=3,
  num_attention_heads=2,
  image_size=28,
  patch_size=7,
)


def onevision():
  tower = dict(model_type="siglip_vision_model", vision_use_head=False)
  config = checkpoints.onevision_config(
    VOCABULARY,
    vision_config=TOWER | tower,
    text=TEXT | dict(tie_word_embeddings=True),
    tie_word_embeddings=True,
  )
  return checkpoints.onevision(config)


def llava():
  tower = TOWER | dict(model_type="clip_vision_model")
  return checkpoints.llava(
    checkpoints.llava_config(VOCABULARY, vision_config=tower)
  )


def siglip2():
  config = {k: v for k, v in TOWER.items() if k != "image_size"}
  return transformers.Siglip2VisionModel(
    transformers.Siglip2VisionConfig(**config, num_patches=16)
  )


def dinov2():
  config = {k: v for k, v in TOWER.items() if k != "intermediate_size"}
  return transformers.Dinov2Model(transformers.Dinov2Config(**config))


MODELS = {
  "qwen2": lambda: transformers.Qwen2ForCausalLM(
    transformers.Qwen2Config(**TEXT)
  ),
  "qwen3": lambda: transformers.Qwen3ForCausalLM(
    transformers.Qwen3Config(**TEXT, head_dim=12, tie_word_embeddings=True)
  ),
  "llama": lambda: transformers.LlamaForCausalLM(
    transformers.LlamaConfig(**TEXT)
  ),
  "siglip": lambda: transformers.SiglipVisionModel(
    transformers.SiglipVisionConfig(**TOWER)
  ),
  "siglip2": siglip2,
  "clip": lambda: transformers.CLIPVisionModel(
    transformers.CLIPVisionConfig(**TOWER)
  ),
  "dinov2": dinov2,
  "llava_onevision": onevision,
  "llava": llava,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Directory of a tiny random model, by family and dtype."""
  made = {}

  def make(family, dtype="float32"):
    if (family, dtype) not in made:
      torch.manual_seed(0)
      model = MODELS[family]()
      with torch.no_grad():
        for weight in model.parameters():  # norms and biases are 1 and 0
          weight.add_(0.1 * torch.randn_like(weight))
      path = tmp_path_factory.mktemp(family)
      model.to(getattr(torch, dtype)).save_pretrained(path)
      made[family, dtype] = path
    return made[family, dtype]

  return make


def export(source, to, dtype=None):
  exporting.write(store.open_stored(source), to, dtype=dtype)


def join(text, tower, model, to):
  store.save(joining.join(text, tower, model), to)


def verified(ours, reference):
  return verify.verify(*load.load(ours), reference)


def bits(x):
  return np.atleast_1d(x).view(np.uint8)


def assert_bitwise(got, want):
  assert got.keys() == want.keys()
  for name, tensor in want.items():
    assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape
    np.testing.assert_array_equal(bits(got[name]), bits(tensor), name)


@pytest.mark.few(14)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", MODELS)
def test_there_and_back_is_bitwise(saved, family, dtype, tmp_path):
  path = saved(family, dtype)
  checkpoints.to_ours(path, tmp_path / "ours")
  export(tmp_path / "ours", tmp_path / "back")
  assert_bitwise(tensors_of(tmp_path / "back"), tensors_of(path))
  read = lambda p: json.loads((p / "config.json").read_text())
  assert read(tmp_path / "back") == read(path)


@pytest.mark.few(5)
@pytest.mark.parametrize("family", MODELS)
def test_ours_computes_what_transformers_does(saved, family, tmp_path):
  path = saved(family)
  checkpoints.to_ours(path, tmp_path / "ours")
  for compared in verified(tmp_path / "ours", path):
    assert compared.error <= 1e-5 * compared.scale, compared


@pytest.mark.parametrize("family", ["qwen3", "llava_onevision"])
def test_both_ways_to_read_give_the_same(saved, family, tmp_path):
  path = saved(family)
  checkpoints.to_ours(path, tmp_path / "ours")
  config, ours = load.load(tmp_path / "ours")
  direct_config, direct = load.load(path)
  assert config.model == direct_config.model
  jax.tree.map(np.testing.assert_array_equal, ours, direct)


SHARDED = """
import pathlib, sys
import jax, numpy as np
from gaze_jax.weights import hf, store, tensors
read, asked = tensors.Tensors.read, []
def counted(self, name, index):
  part = read(self, name, index)
  asked.append(part.size)
  return part
tensors.Tensors.read = counted
stored = hf.open_checkpoint(pathlib.Path(sys.argv[1]))
name = "decoder/layers/query/weight"
leaf = next(x for x in stored.leaves if x.name == name)
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("tensor",))
spec = jax.sharding.PartitionSpec(None, None, "tensor")
place = lambda path: jax.sharding.NamedSharding(mesh, spec)
array = store.load([leaf], sharding=place)["decoder"]["layers"]["query"]
array = array["weight"]
print(len(jax.devices()), array.addressable_shards[0].data.shape, asked)
np.save(sys.argv[2], np.asarray(array))
"""


@pytest.mark.nightly
def test_each_device_reads_its_own_part(saved, tmp_path):
  out = tmp_path / "query.npy"
  flags = os.environ.get("XLA_FLAGS", "")
  flags += " --xla_force_host_platform_device_count=4"
  run = subprocess.run(
    [sys.executable, "-c", SHARDED, str(saved("qwen2")), str(out)],
    env=os.environ | {"XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=True,
  )
  # 4 devices have one of 4 heads each, of 2 layers: 8 rows of 32.
  assert run.stdout.strip() == f"4 (2, 32, 1, 8) {[256] * 8}"
  _, params = load.load(saved("qwen2"))
  want = params["decoder"]["layers"]["query"]["weight"]
  np.testing.assert_array_equal(np.load(out), want)


def test_a_head_that_repeats_the_tied_embedding(saved, tmp_path):
  path = saved("qwen3")
  found = tensors_of(path)
  found["lm_head.weight"] = found["model.embed_tokens.weight"]
  hub = tmp_path / "hub"
  hub.mkdir()
  (hub / "config.json").write_bytes((path / "config.json").read_bytes())
  file = hub / "model.safetensors"
  safetensors.numpy.save_file(found, file)
  checkpoints.to_ours(hub, tmp_path / "ours")
  export(tmp_path / "ours", tmp_path / "back")
  assert_bitwise(tensors_of(tmp_path / "back"), found)
  found["lm_head.weight"] = found["lm_head.weight"] + 1
  safetensors.numpy.save_file(found, file)
  with pytest.raises(errors.ConversionError, match="lm_head.weight differs"):
    checkpoints.to_ours(hub, tmp_path / "other")


def test_a_dtype_can_be_chosen_and_must_hold_the_values(saved, tmp_path):
  path = saved("qwen2")
  checkpoints.to_ours(path, tmp_path / "narrow", dtype="bfloat16")
  stored = store.open_stored(tmp_path / "narrow")
  assert {leaf.dtype.name for leaf in stored.leaves} == {"bfloat16"}
  export(tmp_path / "narrow", tmp_path / "wide", dtype="float32")
  want = tensors_of(path)
  for name, tensor in tensors_of(tmp_path / "wide").items():
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor, want[name], rtol=2**-8)
  large = {k: v * 1e9 for k, v in want.items()}
  hub = tmp_path / "hub"
  hub.mkdir()
  (hub / "config.json").write_bytes((path / "config.json").read_bytes())
  safetensors.numpy.save_file(large, hub / "model.safetensors")
  with pytest.raises(errors.ConversionError, match="does not fit float16"):
    checkpoints.to_ours(hub, tmp_path / "half", dtype="float16")
  assert not (tmp_path / "half").exists()


@pytest.mark.nightly
def test_a_dry_run_writes_nothing(saved, tmp_path):
  out = [f"--to={tmp_path / 'ours'}", f"--export={tmp_path / 'back'}"]
  ran = subprocess.run(
    [sys.executable, "launch/convert.py", f"--from={saved('qwen2')}", *out]
    + ["--dry-run"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert ran.stdout.count(" fits ") == 2
  assert list(tmp_path.iterdir()) == []


def test_a_model_that_lost_its_newline_is_no_onevision(saved, tmp_path):
  checkpoints.to_ours(saved("llava_onevision"), tmp_path / "ours")
  stored = store.open_stored(tmp_path / "ours")
  plain = dataclasses.replace(
    stored.config.model, tiling=config_lib.TilingConfig()
  )
  without = dataclasses.replace(
    stored,
    config=hf.config_for(plain),
    leaves=[x for x in stored.leaves if x.path[-1] != "newline"],
  )
  store.save(without, tmp_path / "plain")
  with pytest.raises(errors.ConversionError, match="model.tiling.kind is 'any"):
    export(tmp_path / "plain", tmp_path / "back")
  assert not (tmp_path / "back").exists()


@pytest.fixture
def joined():
  """A config for the tiny SigLIP and the tiny Qwen3 together."""

  def make(**gaze):
    vision = config_lib.VisionConfig(
      image_size=28,
      patch_size=7,
      width=24,
      depth=3,
      heads=2,
      mlp_dim=40,
      class_token=False,
      layer_scale=False,
      activation="gelu_tanh",
      position_grid=4,
      hidden_state=-2,
      mean=(0.5, 0.5, 0.5),
      std=(0.5, 0.5, 0.5),
    )
    decoder = config_lib.DecoderConfig(
      vocab_size=60,
      width=32,
      depth=2,
      head_dim=12,
      mlp_dim=48,
    )
    model = config_lib.ModelConfig(
      vision=vision,
      decoder=decoder,
      gaze=config_lib.GazeConfig(region=(2, 2, 1), **gaze),
    )
    return model

  return make


def test_two_towers_into_one_model(saved, joined, tmp_path):
  parts = saved("qwen3"), saved("siglip")
  join(*parts, joined(), tmp_path / "ours")
  config, params = load.load(tmp_path / "ours")
  assert config.model == joined()
  assert params["projector"]["context"].shape == (4, 32)
  want = tensors_of(parts[1])["encoder.layers.1.mlp.fc1.weight"]
  got = params["vision"]["blocks"]["mlp"]["up"]["kernel"]
  assert got.shape[0] == 2  # the third layer is past the hidden state
  np.testing.assert_array_equal(got[1], want.T)
  # It is a LLaVA to transformers, and its context tokens come back.
  export(tmp_path / "ours", tmp_path / "back")
  for compared in verified(tmp_path / "ours", tmp_path / "back"):
    assert compared.error <= 1e-5 * compared.scale, compared
  again, other = load.load(tmp_path / "back")
  assert again.model.gaze == config.model.gaze
  context = other["projector"]["context"]
  np.testing.assert_array_equal(context, params["projector"]["context"])


def test_a_nested_image_processor_goes_in_and_out(saved, tmp_path):
  shutil.copytree(saved("llava"), tmp_path / "hf")
  inner = dict(
    image_processor_type="LlavaImageProcessor",
    image_mean=[0.1, 0.2, 0.3],
    image_std=[0.4, 0.5, 0.6],
    size=28,
    crop_size=28,
  )
  whole = dict(processor_class="LlavaProcessor", image_processor=inner)
  (tmp_path / "hf/processor_config.json").write_text(json.dumps(whole))
  checkpoints.to_ours(tmp_path / "hf", tmp_path / "ours")
  tower = store.open_stored(tmp_path / "ours").config.model.vision
  assert (tower.mean, tower.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
  export(tmp_path / "ours", tmp_path / "back")
  assert image_processors.find(tmp_path / "back") == (
    image_processors.NESTED,
    inner,
  )
  assert not (tmp_path / "back" / image_processors.ALONE).exists()
  inner |= dict(size=56, crop_size=56)
  (tmp_path / "hf/processor_config.json").write_text(json.dumps(whole))
  with pytest.raises(errors.ConversionError, match="squares of 56") as caught:
    hf.read_configs(tmp_path / "hf")
  assert "hf/processor_config.json: " in str(caught.value)


def test_an_image_processor_beside_text_alone_is_not_read(saved, tmp_path):
  shutil.copytree(saved("qwen2"), tmp_path / "hf")
  (tmp_path / "hf/processor_config.json").write_text("{")
  assert "qwen2" in load.inspect(tmp_path / "hf")


def test_a_byte_order_mark_before_config_json(saved, tmp_path):
  shutil.copytree(saved("qwen2"), tmp_path / "hf")
  file = tmp_path / "hf/config.json"
  file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
  checkpoints.to_ours(tmp_path / "hf", tmp_path / "ours")
  export(tmp_path / "ours", tmp_path / "back")
  assert (tmp_path / "back/config.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
  "said, want",
  [
    (dict(generation_config=dict(eos_token_id=[7, 8])), (7, 8)),
    (dict(config=dict(eos_token_id=9)), (9,)),
    (dict(config={}), ()),
  ],
)
def test_a_joined_model_ends_as_its_decoder_does(
  saved, joined, tmp_path, said, want
):
  text = tmp_path / "text"
  shutil.copytree(saved("qwen3"), text)
  (text / "generation_config.json").unlink()
  raw = json.loads((text / "config.json").read_text())
  raw.pop("eos_token_id", None)
  (text / "config.json").write_text(json.dumps(raw | said.get("config", {})))
  if other := said.get("generation_config"):
    (text / "generation_config.json").write_text(json.dumps(other))
  join(text, saved("siglip"), joined(), tmp_path / "ours")
  export(tmp_path / "ours", tmp_path / "back")
  for folder in ("ours/hf", "back"):
    assert stop_tokens.beside(tmp_path / folder / "tokenizer.json") == want


def test_a_joined_models_pictures_are_its_own(saved, joined, tmp_path):
  """The tower's file is of its own size, and of squares alone."""
  tower = tmp_path / "tower"
  shutil.copytree(saved("siglip"), tower)
  raw = dict(image_processor_type="SiglipImageProcessor", resample=3)
  raw |= dict(size={"height": 56, "width": 56}, image_mean=0.5, image_std=0.5)
  (tower / image_processors.ALONE).write_text(json.dumps(raw))
  join(saved("qwen3"), tower, joined(), tmp_path / "ours")
  export(tmp_path / "ours", tmp_path / "back")
  _, back = image_processors.find(tmp_path / "back")
  assert back["size"] == {"height": 28, "width": 28}


def test_another_architecture_is_named(saved, joined, tmp_path):
  decoder = dataclasses.replace(joined().decoder, depth=5, norm_eps=1e-5)
  model = dataclasses.replace(joined(), decoder=decoder)
  with pytest.raises(errors.ConversionError) as caught:
    join(saved("qwen3"), saved("siglip"), model, tmp_path / "ours")
  assert "model.decoder.depth is 2 there and 5" in str(caught.value)
  assert "model.decoder.norm_eps is 1e-06 there and 1e-05" in str(caught.value)
  shown = tmp_path / "shown"
  shutil.copytree(saved("siglip"), shown)
  raw = dict(image_processor_type="SiglipImageProcessor", resample=2)
  raw |= dict(size={"height": 28, "width": 28})
  (shown / "preprocessor_config.json").write_text(json.dumps(raw))
  with pytest.raises(errors.ConversionError, match="resample is 'bilinear'"):
    join(saved("qwen3"), shown, joined(), tmp_path / "o")
  with pytest.raises(errors.ConversionError, match="has no vision"):
    join(saved("qwen3"), saved("qwen2"), joined(), tmp_path / "o")
  assert list(tmp_path.iterdir()) == [shown]


def test_verify_sees_a_swap_that_shapes_do_not_show(saved, tmp_path):
  path = saved("clip")
  found = tensors_of(path)
  q, k = (
    f"encoder.layers.1.self_attn.{name}_proj.weight" for name in ("q", "k")
  )
  found[q], found[k] = found[k], found[q]
  (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
  safetensors.numpy.save_file(found, tmp_path / "model.safetensors")
  assert verified(path, path)
  with pytest.raises(verify.VerifyError, match="features of pictures"):
    verified(tmp_path, path)


@pytest.mark.parametrize(
  "key, value, says",
  [
    ("hidden_size", "32", "of a kind that it .*take the quotes from hidden_s"),
    ("num_attention_heads", 0, "config.json: a value is of a kind"),
    ("num_hidden_layers", -1, "model.decoder.depth = -1 is below 1"),
    ("rms_norm_eps", [1], "config.json: a value is of a kind"),
  ],
)
def test_a_value_that_can_not_be(saved, tmp_path, key, value, says):
  shutil.copytree(saved("qwen2"), tmp_path / "hf")
  file = tmp_path / "hf" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
  with pytest.raises(errors.ConversionError, match=says) as caught:
    checkpoints.to_ours(tmp_path / "hf", tmp_path / "ours")
  assert "config.json" in str(caught.value)


def test_other_context_tokens_are_refused(saved, joined, tmp_path):
  join(saved("qwen3"), saved("siglip"), joined(), tmp_path / "ours")
  export(tmp_path / "ours", tmp_path / "back")
  wrong = {"projector/context": np.zeros((3, 32), np.float32)}
  safetensors.numpy.save_file(wrong, tmp_path / "back" / "gaze.safetensors")
  with pytest.raises(errors.ConversionError, match="not the context tokens"):
    checkpoints.to_ours(tmp_path / "back", tmp_path / "again")
  beside = tmp_path / "back" / hf.GAZE_FILE
  beside.unlink()
  with pytest.raises(errors.ConversionError, match="no such file, and config"):
    checkpoints.to_ours(tmp_path / "back", tmp_path / "again")
  shutil.copytree(saved("llava"), tmp_path / "plain")
  safetensors.numpy.save_file(wrong, tmp_path / "plain" / hf.GAZE_FILE)
  with pytest.raises(errors.ConversionError, match="not the context tokens"):
    checkpoints.to_ours(tmp_path / "plain", tmp_path / "again")


def test_a_budget_of_its_own_goes_there_and_back(saved, tmp_path):
  checkpoints.to_ours(saved("llava"), tmp_path / "ours")
  stored = store.open_stored(tmp_path / "ours")
  model = stored.config.model
  gaze = dataclasses.replace(
    model.gaze, budget="fixed", top_k=3, region=(2, 2, 1)
  )
  assert gaze.context_tokens == 0
  config = hf.config_for(dataclasses.replace(model, gaze=gaze))
  sparse = dataclasses.replace(stored, config=config)
  exporting.write(sparse, tmp_path / "back")
  assert not (tmp_path / "back" / hf.GAZE_FILE).exists()
  again, params = load.load(tmp_path / "back")
  assert again.model.gaze == gaze and "context" not in params["projector"]
  file = tmp_path / "back" / "config.json"
  raw = json.loads(file.read_text())
  assert raw[hf.GAZE_KEY]["schema"] == 2
  # Schema 1 had regions of one frame.
  raw[hf.GAZE_KEY] |= dict(schema=1, region=[2, 2])
  file.write_text(json.dumps(raw))
  assert load.load(tmp_path / "back")[0].model.gaze == gaze
  raw[hf.GAZE_KEY]["schema"] = 3
  file.write_text(json.dumps(raw))
  with pytest.raises(errors_lib.GazeError, match="gaze: written as schema 3"):
    load.load(tmp_path / "back")


def manifest_of(directory, **changes):
  """Rewrites gaze.json with other values; `...` takes a key away."""
  file = directory / store.NAME
  raw = json.loads(file.read_text()) | changes
  kept = {k: v for k, v in raw.items() if v is not ...}
  file.write_text(json.dumps(kept))


def test_what_was_converted_before_there_were_schemas_is_read(saved, tmp_path):
  """It had `version`, and a leaf without elements for no context tokens."""
  checkpoints.to_ours(saved("llava"), tmp_path / "ours")
  stored = store.open_stored(tmp_path / "ours")
  none = {"projector": {"context": np.zeros((0, 32), np.float32)}}
  old = tmp_path / "old"
  leaves = [*stored.leaves, *store.from_params(none)]
  store.save(dataclasses.replace(stored, leaves=leaves), old)
  with pytest.raises(errors.ConversionError, match="unexpected: proj"):
    store.open_stored(old)
  manifest_of(old, version=1, schema=...)
  assert store.open_stored(old).config == stored.config
  _, params = load.load(old)
  _, want = load.load(tmp_path / "ours")
  jax.tree.map(np.testing.assert_array_equal, params, want)


@pytest.mark.parametrize(
  "changes, says",
  [
    (dict(schema=5), "schema 5 by a newer gaze_jax; this one reads up to 4"),
    (dict(schema="2"), "schema = '2' is no version"),
    (dict(schema=True), "schema = True is no version"),
    (dict(schema=0), "schema = 0 is no version"),
    (dict(origin=...), "has no origin; convert the checkpoint again"),
  ],
)
def test_a_manifest_that_is_not_read(saved, tmp_path, changes, says):
  checkpoints.to_ours(saved("qwen3"), tmp_path / "ours")
  manifest_of(tmp_path / "ours", **changes)
  with pytest.raises(errors_lib.GazeError, match=says) as caught:
    load.load(tmp_path / "ours")
  assert str(tmp_path / "ours" / store.NAME) in str(caught.value)


def test_what_transformers_can_not_run_is_said(saved, tmp_path):
  shutil.copytree(saved("qwen2"), tmp_path / "hf")
  file = tmp_path / "hf" / "config.json"
  raw = json.loads(file.read_text()) | {"architectures": ["LlavaQwen"]}
  file.write_text(json.dumps(raw))
  with pytest.raises(errors_lib.GazeError, match="no class of transformers"):
    verified(saved("qwen2"), tmp_path / "hf")


def test_inspect_says_what_is_there(saved, tmp_path):
  said = load.inspect(saved("siglip"))
  assert "siglip_vision_model" in said and "width=24" in said
  assert "kept but not computed with: " in said
  checkpoints.to_ours(saved("siglip"), tmp_path / "ours")
  assert "ours" in load.inspect(tmp_path / "ours")


# Parameters as their makers publish them: all, and without embeddings.
PUBLISHED = {"cambrian_4b": (4.0e9, 3.6e9), "cambrian_7b": (7.61e9, 6.53e9)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_models_have_the_published_sizes(name):
  config = cli._load(f"configs/{name}.py")
  shapes = registry.shapes(config.model)
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  decoder = shapes["decoder"]
  tables = size(decoder["embedding"]) + size(decoder.get("head", ()))
  everything, inner = PUBLISHED[name]
  np.testing.assert_allclose(size(decoder), everything, rtol=0.006)
  np.testing.assert_allclose(size(decoder) - tables, inner, rtol=0.011)
  assert config.model.vision.tokens == 576
  assert shapes["vision"]["blocks"]["mlp"]["up"]["kernel"].shape[0] == 26
  regions, trained = budgets.of_config(config)
  assert (regions, trained) == (16, 4)
