"""Files beside a model's weights, or in their place: what they are.

An adapter, a projector, a trainer's state or another format alone is no model;
one line says what it is and how to make a model of it.
"""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from gaze_jax.weights import errors

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


def is_beside(name: str) -> bool:
  """Whether a file's name says that it has no weights of a model."""
  return bool(
    _ADAPTER.fullmatch(name)
    or _PROJECTOR.fullmatch(name)
    or _STATE.fullmatch(name)
  )


def adapters(names: Iterable[str]) -> list[str]:
  """The files of an adapter among some."""
  return [name for name in names if _ADAPTER.fullmatch(name)]


def refuse_files(directory: pathlib.Path) -> None:
  """Says what a directory holds that has no file of a model's weights.

  Raises:
    ConversionError: it is something that is known here.
    OSError: it can't be read.
  """
  names = sorted(p.name for p in directory.iterdir())
  if any(n.endswith(WEIGHTS) and not is_beside(n) for n in names):
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


def refuse_names(directory: pathlib.Path, names: Sequence[str]) -> None:
  """Says what tensors are that are no whole model, whatever their file.

  Raises:
    ConversionError: they are an adapter, or a projector alone.
  """
  if any(_LORA.search(name) for name in names):
    _refuse_adapter(directory, [n for n in names if _LORA.search(n)])
  if names and all(_OF_PROJECTOR.search(name) for name in names):
    _refuse_projector(directory, names[0])


def _refuse_adapter(directory: pathlib.Path, found: Sequence[str]) -> None:
  base = None
  with contextlib.suppress(OSError, ValueError, RecursionError):
    raw = json.loads((directory / "adapter_config.json").read_bytes())
    base = raw.get("base_model_name_or_path") if isinstance(raw, dict) else None
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
