"""Why a directory is not the checkpoint that it should be, and the remedy.

Its files may be an adapter, a projector, a trainer's state or another format,
none of which is a model; or its tensors may not fit its config.json.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax import json_file
from gaze_jax.weights import errors
from gaze_jax.weights import tables

# Endings of files that may hold a model's weights.
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
_ADAPTER = re.compile(
  r"adapter.*\.(safetensors|bin|pt)|non_lora_trainables\.bin"
)
_PROJECTOR = re.compile(r"mm_projector.*\.(bin|pt|safetensors)")
# Of a trainer: no weights are in them, or not as a model's.
_STATE = re.compile(
  r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|"
  r"trainer_state|optim_states|zero_|bf16_zero|mp_rank_|global_step).*"
)
_LORA = re.compile(r"\blora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")
_OF_PROJECTOR = re.compile(
  r"(^|\.)(mm_projector|multi_modal_projector|image_newline)(\.|$)"
)
# Ending -> what it is, and what to do.
_FORMATS: Mapping[str, tuple[str, str]] = {
  ".gguf": (
    "a GGUF file",
    "load it with transformers (gguf_file=...) and save_pretrained, or take"
    " the checkpoint that it was made of",
  ),
  ".ggml": ("a GGML file", "take the checkpoint that it was made of"),
  ".h5": (
    "weights of TensorFlow",
    "load them with a transformers of version 4 (from_tf=True) and"
    " save_pretrained",
  ),
  ".msgpack": (
    "weights of Flax",
    "load them with a transformers of version 4 (from_flax=True) and"
    " save_pretrained",
  ),
  ".onnx": ("a graph of ONNX", "take the checkpoint that it was made of"),
  ".ckpt": (
    "a checkpoint of Lightning",
    "save its model with save_pretrained where it was trained",
  ),
  ".distcp": (
    "a sharded checkpoint of torch",
    "merge it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save",
  ),
}
_MERGE = (
  "merge it into its base model first, by peft:"
  " PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload()"
  ".save_pretrained(DIR)"
)
_SHOWN = 3  # names in a line
# A tensor that a layer of some decoders has -> the first family with it.
_TELLS = {"q_norm.weight": "qwen3", "q_proj.bias": "qwen2"}
_LAYER = r"(?<!encoder\.)layers\.\d+\.self_attn\."
_OF_WHOLE = re.compile(r"vision_tower\.|mm_projector\.|multi_modal_projector\.")


def is_no_model(name: str) -> bool:
  """Whether a file, by its name, has no weights of a model."""
  return bool(
    _ADAPTER.fullmatch(name)
    or _PROJECTOR.fullmatch(name)
    or _STATE.fullmatch(name)
  )


def adapters(names: Iterable[str]) -> list[str]:
  """The files of an adapter among some."""
  return [name for name in names if _ADAPTER.fullmatch(name)]


def refuse_files(directory: pathlib.Path) -> None:
  """Refuses a directory without a file of a model's weights, by what it holds.

  Raises:
    ConversionError: it is something that is known here.
    OSError: it can't be read.
  """
  names = sorted(p.name for p in directory.iterdir())
  if any(n.endswith(WEIGHTS) and not is_no_model(n) for n in names):
    return
  if found := adapters(names):
    _refuse_adapter(directory, found)
  if found := [n for n in names if _PROJECTOR.fullmatch(n)]:
    _refuse_projector(directory, found[0])
  for name in names:
    what, remedy = _FORMATS.get(pathlib.PurePath(name).suffix, ("", ""))
    if what:
      raise errors.ConversionError(
        f"{directory}: {name} is {what}, which is not read here: {remedy}"
      )
  if found := [n for n in names if _STATE.fullmatch(n)]:
    raise errors.ConversionError(
      f"{directory}: only a trainer's state ({found[0]}), no model: save it"
      " where it was trained (save_pretrained; of DeepSpeed's, by"
      " zero_to_fp32.py), and give that directory"
    )


def refuse_partial(directory: pathlib.Path, names: Sequence[str]) -> None:
  """Refuses tensors that are no whole model, whatever their file.

  Raises:
    ConversionError: they are an adapter, or a projector alone.
  """
  if any(_LORA.search(name) for name in names):
    _refuse_adapter(directory, [n for n in names if _LORA.search(n)])
  if names and all(_OF_PROJECTOR.search(name) for name in names):
    _refuse_projector(directory, names[0])


def _refuse_adapter(directory: pathlib.Path, found: Sequence[str]) -> None:
  base = None
  with contextlib.suppress(errors.ConversionError):
    raw = json_file.read(
      directory / "adapter_config.json", errors.ConversionError
    )
    base = raw.get("base_model_name_or_path")
  of = f" of {base}" if base else ""
  raise errors.ConversionError(
    f"{directory}: an adapter{of} ({found[0]}), not a whole model: {_MERGE}"
  )


def _refuse_projector(directory: pathlib.Path, found: str) -> None:
  raise errors.ConversionError(
    f"{directory}: only a projector ({found}), as LLaVA's first stage saves it:"
    " decoder and tower are elsewhere; load all three with LLaVA's code"
    " (load_pretrained_model with model_base) and save the whole, or take the"
    " second stage's checkpoint"
  )


def explain(
  directory: pathlib.Path,
  raw: Mapping[str, Any],
  model: config_lib.ModelConfig,
  naming: str,
  entries: Sequence[tables.Entry],
  problems: Sequence[str],
  names: Collection[str],
) -> str:
  """Why tensors don't fit a config: the one reason, or every difference.

  Args:
    directory: the checkpoint's.
    raw: its config.json.
    model: the model that this describes.
    naming: the naming of tensors that came nearest.
    entries: every leaf that should be filled, by that naming.
    problems: of `tables.differences`.
    names: of all tensors that are there.
  """
  parts = {entry.path[0] for entry in entries}
  kind = raw["model_type"]
  if other := _other_family(model, parts, names):
    found, tell = other
    return (
      f"{directory}: config.json has model_type = {kind!r}, and the tensors are"
      f" those of {found} ({tell}): take the config.json of the checkpoint, or"
      " set model_type (and architectures) to what they are"
    )
  wanted = tables.wanted(entries)
  if wrapper := _wrapper(wanted, names):
    return (
      f"{directory}: every tensor's name begins with {wrapper!r}, as a"
      " wrapper writes it (DataParallel, torch.compile): save the state dict of"
      f" the model within (wrapped.{wrapper[:-1]}.state_dict())"
    )
  if not any(name in wanted for name in names):
    some = ", ".join(sorted(names)[:_SHOWN])
    return (
      f"{directory}: none of the {len(wanted)} tensors of a model of type"
      f" {kind!r} is there; the file has {len(names)} others ({some}): take the"
      " config.json that came with them"
    )
  lines = _whole_parts(entries, list(problems))
  many = "s" * (len(lines) > 1)
  hints = [f"hint: {hint}" for hint in _hints(lines, raw)]
  return (
    f"{directory}: does not fit a model of type {kind!r}, in {len(lines)}"
    f" place{many} (nearest naming of tensors: {naming}):\n  "
    + "\n  ".join(lines + hints)
  )


def _wrapper(wanted: Collection[str], names: Collection[str]) -> str:
  """What stands before all names, and is all that is wrong; "" for nothing."""
  shared = os.path.commonprefix(list(names))
  for found in re.finditer(r"\.", shared):
    prefix = shared[: found.end()]
    if set(wanted) <= {name.removeprefix(prefix) for name in names}:
      return prefix
  return ""


def _other_family(
  model: config_lib.ModelConfig, parts: Collection[str], names: Collection[str]
) -> tuple[str, str] | None:
  """Another family whose tensors these are, and one that tells."""
  if "decoder" not in parts:
    return None
  if "vision" not in parts:
    tells = [name for name in names if _OF_WHOLE.search(name)]
    if tells:
      return "a whole LLaVA", min(tells)
  layers = [name for name in names if re.search(_LAYER, name)]
  if not layers:
    return None
  found, tell = "llama", f"they have no {' and no '.join(_TELLS)}"
  for end, family in _TELLS.items():
    if have := [name for name in layers if name.endswith(f"self_attn.{end}")]:
      found, tell = family, min(have)
      break
  wanted = "qwen2" if model.decoder.qkv_bias else "llama"
  wanted = "qwen3" if model.decoder.qk_norm else wanted
  return None if found == wanted else (found, tell)


def _whole_parts(
  entries: Sequence[tables.Entry], lines: list[str]
) -> list[str]:
  """One line for a part of which nothing is there."""
  for part in dict.fromkeys(entry.path[0] for entry in entries):
    wanted = tables.wanted(e for e in entries if e.path[0] == part)
    absent = [f"missing: {n} {list(shape)}" for n, shape in wanted.items()]
    if len(absent) > 1 and set(absent) <= set(lines):
      one = f"{absent[0]} and the {len(absent) - 1} others of the {part}"
      lines = [one, *(line for line in lines if line not in absent)]
  return lines


def _hints(lines: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
  hints = []
  if any(m.startswith("missing: ") and "lm_head.weight" in m for m in lines):
    hints.append(
      "tie_word_embeddings is false, so the head must be in the file; set it"
      " to true if the head is the embedding"
    )
  rows = ("embed_tokens.weight", "lm_head.weight")
  if any(m.startswith("shape of ") and n in m for m in lines for n in rows):
    text = raw.get("text_config") or raw
    hints.append(
      f"vocab_size = {text.get('vocab_size')} in config.json is not the rows"
      " of the embedding; if it was padded, set vocab_size to its rows"
    )
  return hints
