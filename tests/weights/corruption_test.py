"""Twelve ways to break a checkpoint; each ends in one clear error.

The checkpoints are what transformers writes, in several shards. What shapes do
not show is caught by comparing with transformers (`weights/verify.py`).
"""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers

from gaze_jax import errors as errors_lib
from gaze_jax.weights import load
from gaze_jax.weights import verify

ROOT = pathlib.Path(__file__).parent.parent.parent
INDEX = "model.safetensors.index.json"
# Where the decoder's names begin in each family's file.
PREFIX = {
  "qwen2": "model.",
  "mha": "model.",
  "llava_onevision": "language_model.model.",
}
BOTH = pytest.mark.parametrize("family", ["qwen2", "llava_onevision"])


def qwen2(**more):
  config = transformers.Qwen2Config(**checkpoints.TEXT | more, vocab_size=60)
  return transformers.Qwen2ForCausalLM(config)


def onevision():
  tower = dict(hidden_size=24, intermediate_size=40)
  config = checkpoints.onevision_config(
    60, vision_config=checkpoints.SIGLIP | tower
  )
  return checkpoints.onevision(config)


MODELS = {
  "qwen2": qwen2,
  "mha": lambda: qwen2(num_key_value_heads=4),  # query and key of one shape
  "llava_onevision": onevision,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
  """Directory of a tiny random model in shards, by family."""
  made = {}

  def make(family):
    if family not in made:
      torch.manual_seed(0)
      path = tmp_path_factory.mktemp(family)
      MODELS[family]().save_pretrained(path, max_shard_size="24KB")
      assert len(list(path.glob("model-*.safetensors"))) > 2
      made[family] = path
    return made[family]

  return make


@pytest.fixture
def copied(sound, tmp_path):
  """A copy of it that a test may break."""

  def make(family):
    return pathlib.Path(
      shutil.copytree(sound(family), tmp_path / "from", dirs_exist_ok=True)
    )

  return make


def refused(path):
  """What converting says, which leaves nothing at the destination."""
  to = path.parent / "to"
  with pytest.raises(errors_lib.GazeError) as caught:
    checkpoints.to_ours(path, to)
  assert os.listdir(path.parent) == [path.name]
  text = str(caught.value)
  with pytest.raises(errors_lib.GazeError) as dry:
    load.open_directory(path)
  assert str(dry.value) == text
  return text


def edit_config(path, change):
  file = path / "config.json"
  config = json.loads(file.read_text())
  change(config)
  file.write_text(json.dumps(config))


def edit_index(path, change):
  index = json.loads((path / INDEX).read_text())
  change(index["weight_map"])
  (path / INDEX).write_text(json.dumps(index))


def shard_of(path, name):
  return path / json.loads((path / INDEX).read_text())["weight_map"][name]


def edit_shard(path, name, change, save=safetensors.torch):
  """Rewrites the shard that holds a tensor, and its part of the index."""
  file = shard_of(path, name)
  found = save.load_file(file)
  change(found)
  save.save_file(found, file, metadata={"format": "pt"})

  def rename(index):
    for key in [k for k, v in index.items() if v == file.name]:
      del index[key]
    index.update(dict.fromkeys(found, file.name))

  edit_index(path, rename)


def q_proj(family, layer=1):
  return f"{PREFIX[family]}layers.{layer}.self_attn.q_proj.weight"


@pytest.mark.parametrize("family", MODELS)
def test_a_sound_checkpoint_converts(copied, tmp_path, family):
  checkpoints.to_ours(copied(family), tmp_path / "to")
  assert sorted(os.listdir(tmp_path)) == ["from", "to"]


@BOTH
def test_dropped_key(copied, family):
  path, name = copied(family), q_proj(family)
  edit_shard(path, name, lambda x: x.pop(name))
  text = refused(path)
  assert f"{path}: does not fit a model of type {family!r}, in 1 place" in text
  assert text.splitlines()[1:] == [f"  missing: {name} [32, 32]"]


@BOTH
def test_doubled_layer(copied, family):
  """A layer 2 in a model that has the layers 0 and 1."""
  path, prefix = copied(family), f"{PREFIX[family]}layers."
  found = {}
  for file in path.glob("model-*.safetensors"):
    found |= safetensors.numpy.load_file(file)
  last = {k: v for k, v in found.items() if k.startswith(f"{prefix}1.")}
  double = {k.replace(".layers.1.", ".layers.2."): v for k, v in last.items()}
  safetensors.numpy.save_file(double, path / "model-x.safetensors")
  edit_index(
    path, lambda m: m.update(dict.fromkeys(double, "model-x.safetensors"))
  )
  text = refused(path)
  assert len(double) == 12 and "in 12 places" in text
  for name, value in double.items():
    assert f"unexpected: {name} {list(value.shape)}" in text


@BOTH
def test_transposed_weight(copied, family):
  path = copied(family)
  name = f"{PREFIX[family]}layers.0.mlp.down_proj.weight"
  edit_shard(path, name, lambda x: x.update({name: x[name].T.contiguous()}))
  lines = refused(path).splitlines()[1:]
  assert lines == [f"  shape of {name}: [48, 32] is not [32, 48]"]


@BOTH
def test_swapped_query_and_key(copied, family):
  path, query = copied(family), q_proj(family)
  key = query.replace("q_proj", "k_proj")
  swap(path, query, key)
  lines = refused(path).splitlines()[1:]
  assert sorted(lines) == [
    f"  shape of {key}: [32, 32] is not [16, 32]",
    f"  shape of {query}: [16, 32] is not [32, 32]",
  ]


def swap(path, one, other):
  a, b = (
    safetensors.torch.load_file(shard_of(path, name))[name]
    for name in (one, other)
  )
  edit_shard(path, one, lambda x: x.update({one: b}))
  edit_shard(path, other, lambda x: x.update({other: a}))


def test_a_swap_that_shapes_do_not_show(copied, sound, tmp_path):
  path, query = copied("mha"), q_proj("mha")
  swap(path, query, query.replace("q_proj", "k_proj"))
  checkpoints.to_ours(path, tmp_path / "to")
  with pytest.raises(verify.VerifyError, match="logits of text: largest error"):
    verify.verify(*load.load(tmp_path / "to"), sound("mha"))


def test_a_transposition_that_shapes_do_not_show(copied, sound, tmp_path):
  path, name = copied("mha"), q_proj("mha")
  edit_shard(path, name, lambda x: x.update({name: x[name].T.contiguous()}))
  checkpoints.to_ours(path, tmp_path / "to")
  with pytest.raises(verify.VerifyError, match="logits of text: largest error"):
    verify.verify(*load.load(tmp_path / "to"), sound("mha"))


def test_verify_passes_what_is_sound(copied, sound, tmp_path):
  checkpoints.to_ours(copied("mha"), tmp_path / "to")
  assert verify.verify(*load.load(tmp_path / "to"), sound("mha"))


@BOTH
@pytest.mark.parametrize("cut", [1, 5000])
def test_truncated_file(copied, family, cut):
  path = copied(family)
  file = shard_of(path, q_proj(family))
  size = file.stat().st_size
  os.truncate(file, size - cut)
  text = refused(path)
  assert text.startswith(f"{file}: the file is truncated: {size:,} bytes exp")
  assert f"{size - cut:,} found" in text and "download or copy it" in text


@BOTH
def test_wrong_index(copied, family):
  path, name = copied(family), q_proj(family)
  file = shard_of(path, name).name
  other = next(
    f.name for f in path.glob("model-*.safetensors") if f.name != file
  )
  edit_index(path, lambda m: m.update({name: other}))
  text = refused(path)
  assert f"{name} (said to be in {other}, it is in {file})" in text
  assert "download all of them again" in text


@BOTH
def test_index_of_a_shard_that_is_not_there(copied, family):
  path = copied(family)
  file = shard_of(path, q_proj(family))
  file.unlink()
  text = refused(path)
  assert f"{file.name} of {INDEX} missing; download the 1 of" in text


@BOTH
@pytest.mark.parametrize("size", [59, 64])
def test_wrong_vocabulary(copied, family, size):
  path = copied(family)

  def change(config):
    config.get("text_config", config)["vocab_size"] = size

  edit_config(path, change)
  text = refused(path)
  name = f"{PREFIX[family]}embed_tokens.weight"
  assert f"shape of {name}: [60, 32] is not [{size}, 32]" in text
  assert f"hint: vocab_size = {size} in config.json is not the rows" in text


@pytest.mark.parametrize(
  "field",
  [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
  ],
)
def test_missing_config_field(copied, field):
  path = copied("qwen2")
  edit_config(path, lambda c: c.pop(field))
  text = refused(path)
  assert "config.json" in text and f"lacks {field}" in text
  assert "\n" not in text


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers"])
def test_missing_field_of_a_part(copied, field):
  """transformers fills it in there; then the tensors don't fit."""
  path = copied("llava_onevision")
  edit_config(path, lambda c: c["text_config"].pop(field))
  text = refused(path)
  assert "does not fit a model of type 'llava_onevision'" in text
  assert "language_model.model.layers." in text


def test_no_config(copied):
  path = copied("qwen2")
  (path / "config.json").unlink()
  assert "which has a config.json" in refused(path)


@BOTH
def test_fp8_tensor(copied, family):
  path, name = copied(family), q_proj(family)
  edit_shard(
    path, name, lambda x: x.update({name: x[name].to(torch.float8_e4m3fn)})
  )
  text = refused(path)
  assert f"{path}: the weights are quantised: {name} (float8_e4m3fn)" in text
  assert "dequantise the checkpoint first" in text and "\n" not in text


def test_fp8_checkpoint_as_it_is_published(copied):
  """With scales beside its weights and a quantization_config."""
  path, name = copied("qwen2"), q_proj("qwen2")

  def quantise(found):
    found[name] = found[name].to(torch.float8_e4m3fn)
    found[f"{name}_scale_inv"] = torch.ones(1, 1)

  edit_shard(path, name, quantise)
  edit_config(
    path, lambda c: c.update(quantization_config={"quant_method": "fp8"})
  )
  assert "quantization_config" in refused(path)


@BOTH
def test_unknown_family(copied, family):
  path = copied(family)
  edit_config(path, lambda c: c.update(model_type="mamba2"))
  text = refused(path)
  assert "model_type = 'mamba2' is no family that is known here; known" in text
  assert "qwen2" in text and "llava_onevision" in text and "\n" not in text


@BOTH
@pytest.mark.parametrize("left", [4, 8, 100])
def test_cut_header(copied, family, left):
  path = copied(family)
  file = shard_of(path, q_proj(family))
  os.truncate(file, left)
  text = refused(path)
  assert text.startswith(f"{file}: the safetensors header is truncated: ")
  assert f"{left} found; download or copy it again" in text


class Payload:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


@pytest.fixture
def evil(tmp_path_factory):
  """A file that must never appear."""
  path = tmp_path_factory.mktemp("evil") / "file"
  yield path
  assert not path.exists()


@BOTH
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_named_safetensors(copied, family, evil, zipped):
  path = copied(family)
  file = shard_of(path, q_proj(family))
  if zipped:
    torch.save({"a": Payload(evil)}, file)
  else:
    file.write_bytes(pickle.dumps(Payload(evil)))
  text = refused(path)
  assert text.startswith(f"{file}: a pickle (torch.save), not safetensors")
  assert "weights_only" in text and "\n" not in text


@BOTH
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_code(copied, family, evil, zipped):
  path = only_pickle(copied(family), Payload(evil), zipped)
  text = refused(path)
  assert text.startswith(f"{path / 'pytorch_model.bin'}: ")
  assert "nothing in it was run" in text and "\n" not in text
  assert ("it asks for posix.system" in text) == zipped


def only_pickle(path, payload, zipped=True):
  for file in (*path.glob("model-*"), path / INDEX):
    file.unlink()
  whole = path / "pytorch_model.bin"
  if zipped:
    torch.save({"a": payload}, whole)
  else:
    whole.write_bytes(pickle.dumps(payload))
  return path


def test_a_sound_pickle_converts_to_the_same(copied, sound, tmp_path):
  path = copied("qwen2")
  found = {}
  for file in path.glob("model-*.safetensors"):
    found |= safetensors.torch.load_file(file)
  only_pickle(path, None)
  torch.save(found, path / "pytorch_model.bin")
  checkpoints.to_ours(path, tmp_path / "to")
  checkpoints.to_ours(sound("qwen2"), tmp_path / "want")
  got, want = (
    safetensors.numpy.load_file(tmp_path / name / "model.safetensors")
    for name in ("to", "want")
  )
  assert got.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value)


def command(path, to):
  return subprocess.run(
    [sys.executable, "launch/convert.py", f"--from={path}", f"--to={to}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.nightly
def test_the_command_says_it_in_one_error(copied, tmp_path, evil):
  path, name = copied("qwen2"), q_proj("qwen2")
  edit_shard(path, name, lambda x: x.pop(name))
  ran = command(path, tmp_path / "to")
  assert ran.returncode == 1 and ran.stdout == ""
  assert ran.stderr.splitlines() == [
    f"error: {path}: does not fit a model of type 'qwen2', in 1 place (nearest"
    " naming of tensors: causal LM):",
    f"  missing: {name} [32, 32]",
  ]
  only_pickle(path, Payload(evil))
  ran = command(path, tmp_path / "to")
  assert ran.returncode == 1 and ran.stdout == ""
  assert len(ran.stderr.splitlines()) == 1
  assert ran.stderr.startswith(f"error: {path / 'pytorch_model.bin'}: ")
  assert os.listdir(tmp_path) == ["from"]
