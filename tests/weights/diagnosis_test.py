"""What is no whole model, or another than its config says: one line each."""

import json
import shutil

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from gaze_jax import errors as errors_lib
from gaze_jax.weights import errors
from gaze_jax.weights import hf
from gaze_jax.weights import load
from gaze_jax.weights import tensors
from gaze_jax.weights.families import image_processors

tensors_of = checkpoints.tensors_of

TEXT = dict(
  vocab_size=20,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Directory of a tiny checkpoint, by its model_type; not to be changed."""
  folder = tmp_path_factory.mktemp("made")
  text = dict(
    llama=transformers.LlamaConfig,
    qwen2=transformers.Qwen2Config,
    qwen3=transformers.Qwen3Config,
  )
  for name, config in text.items():
    more = dict(head_dim=8) if name == "qwen3" else {}
    model = transformers.AutoModelForCausalLM.from_config(
      config(**TEXT, **more)
    )
    model.save_pretrained(folder / name)
  config = checkpoints.onevision_config(20, text=TEXT)
  checkpoints.onevision(config).save_pretrained(folder / "llava_onevision")
  return folder


@pytest.fixture
def copied(made, tmp_path):
  def copy(name):
    return shutil.copytree(made / name, tmp_path / name)

  return copy


def save(values, file):
  values = {k: np.ascontiguousarray(v) for k, v in values.items()}
  safetensors.numpy.save_file(values, file, metadata={"format": "pt"})


def change(directory, **values):
  file = directory / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(directory):
  """The one line that it is refused with, wherever it is opened."""
  said = []
  for opens in (load.inspect, load.load):
    with pytest.raises(errors_lib.GazeError) as caught:
      opens(directory)
    said.append(str(caught.value))
  assert said[0] == said[1] and "\n" not in said[0]
  return said[0]


def adapter(directory, name="adapter_model.safetensors"):
  key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
  save({key.format(x): np.zeros((2, 2), "f4") for x in "AB"}, directory / name)
  raw = dict(peft_type="LORA", base_model_name_or_path="some/base")
  (directory / "adapter_config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_alone(copied, config):
  path = copied("qwen2")
  (path / "model.safetensors").unlink()
  if not config:  # as peft saves it
    (path / "config.json").unlink()
  adapter(path)
  said = refused(path)
  assert "an adapter of some/base (adapter_model.safetensors)" in said
  assert "merge it into its base model first" in said


def test_an_adapter_under_the_name_of_a_model(copied):
  path = copied("qwen2")
  values = tensors_of(path)
  layer = "model.layers.0.self_attn.q_proj"
  values[f"{layer}.base_layer.weight"] = values.pop(f"{layer}.weight")
  values[f"{layer}.lora_A.default.weight"] = np.zeros((2, 16), "f4")
  save(values, path / "model.safetensors")
  said = refused(path)
  assert f"an adapter ({layer}.lora_A" in said and "merge" in said


@pytest.mark.parametrize("shards", [False, True])
def test_an_adapter_beside_the_weights_is_named_and_not_applied(
  copied, caplog, shards
):
  path = copied("qwen2")
  if shards:  # which have no index
    name = "model-00001-of-00001.safetensors"
    (path / "model.safetensors").rename(path / name)
  assert not hf.open_checkpoint(path).unused and not caplog.messages
  adapter(path)
  (path / "optimizer.pt").write_bytes(b"")
  (path / "training_args.bin").write_bytes(b"")
  hf.open_checkpoint(path)
  (said,) = caplog.messages
  assert "adapter_model.safetensors is beside the weights" in said
  assert "not applied" in said


@pytest.mark.parametrize("name", ["mm_projector.bin", "pytorch_model.bin"])
def test_a_projector_alone(copied, name):
  path = copied("llava_onevision")
  (path / "model.safetensors").unlink()
  values = {
    f"model.mm_projector.{i}.{leaf}": torch.zeros(2)
    for i in (0, 2)
    for leaf in ("weight", "bias")
  }
  torch.save(values, path / name)
  said = refused(path)
  assert "only a projector (m" in said and "model_base" in said


@pytest.mark.parametrize(
  "name, message",
  [
    ("model-q4.gguf", "model-q4.gguf is a GGUF file"),
    ("flax_model.msgpack", "weights of Flax"),
    ("tf_model.h5", "weights of TensorFlow"),
    ("model.onnx", "a graph of ONNX"),
    ("optimizer.pt", "only a trainer's state (optimizer.pt)"),
    ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py"),
    ("__0_0.distcp", "dcp_to_torch_save"),
  ],
)
@pytest.mark.parametrize("config", [True, False])
def test_other_files_alone(copied, name, message, config):
  path = copied("qwen2")
  (path / "model.safetensors").unlink()
  if not config:
    (path / "config.json").unlink()
  (path / name).write_bytes(b"GGUF")
  assert message in refused(path)


def test_a_state_beside_the_weights_is_no_weights(copied):
  path = copied("qwen2")
  torch.save(
    {k: torch.tensor(v) for k, v in tensors_of(path).items()},
    path / "model_weights.bin",
  )
  (path / "model.safetensors").unlink()
  for name in ("optimizer.bin", "training_args.bin", "rng_state_0.pth"):
    (path / name).write_bytes(b"\0")
  assert len(tensors.Tensors(path).listed) > 10


@pytest.mark.parametrize(
  "there, says, tell",
  [
    ("qwen3", "qwen2", "q_norm.weight"),
    ("qwen3", "llama", "q_norm.weight"),
    ("qwen2", "llama", "q_proj.bias"),
    ("qwen2", "qwen3", "q_proj.bias"),
    ("llama", "qwen2", "they have no q_norm.weight and no q_proj.bias"),
    ("llama", "qwen3", "they have no q_norm.weight and no q_proj.bias"),
  ],
)
def test_the_tensors_of_another_decoder(copied, there, says, tell):
  path = copied(there)
  more = dict(head_dim=8) if says == "qwen3" else {}
  change(path, model_type=says, **more)
  said = refused(path)
  assert f"model_type = '{says}', and the tensors are those of {there}" in said
  assert tell in said


def test_the_tensors_of_a_whole_model_under_a_decoders_name(copied):
  path = copied("llava_onevision")
  raw = json.loads((path / "config.json").read_text())
  change(path, model_type="qwen2")
  assert "vision_config is of a whole model" in refused(path)
  (path / "config.json").write_text(json.dumps(raw["text_config"]))
  said = refused(path)
  assert "the tensors are those of a whole LLaVA (" in said


def test_a_config_of_something_else(copied):
  path = copied("qwen2")
  (path / "config.json").write_text(json.dumps(checkpoints.SIGLIP))
  said = refused(path)
  assert "none of the 35 tensors of a model of type 'siglip_vision" in said
  assert " others (lm_head.weight, model.embed_tokens.weight, " in said


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "a.module."])
def test_a_wrapper_that_names_begin_with_is_named(copied, wrapper):
  path = copied("qwen2")
  values = {wrapper + k: v for k, v in tensors_of(path).items()}
  save(values, path / "model.safetensors")
  said = refused(path)
  assert f"every tensor's name begins with '{wrapper}'" in said
  assert f"wrapped.{wrapper}state_dict()" in said


def test_a_part_that_is_missing_is_one_line(copied):
  path = copied("llava_onevision")
  values = {
    k: v for k, v in tensors_of(path).items() if not k.startswith("vision")
  }
  save(values, path / "model.safetensors")
  with pytest.raises(errors.ConversionError) as caught:
    hf.open_checkpoint(path)
  assert "in 1 place" in str(caught.value)
  (line,) = str(caught.value).splitlines()[1:]
  assert "missing: vision_tower." in line
  assert line.endswith(" others of the vision")


def test_a_video_processor_of_its_own_is_named(copied, caplog):
  path = copied("llava_onevision")
  hf.open_checkpoint(path)
  assert not caplog.messages
  raw = dict(image_mean=[0.25] * 3)
  (path / image_processors.VIDEO).write_text(json.dumps(raw))
  hf.open_checkpoint(path)
  (said,) = caplog.messages
  assert "mean = (0.25, 0.25, 0.25) for a video" in said
  assert "frames are shown to the model as pictures are" in said
