"""Which families of checkpoints are known, and what each is made of."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from gaze_jax import config as config_lib
from gaze_jax.models import mllm
from gaze_jax.weights import errors
from gaze_jax.weights import tables
from gaze_jax.weights.families import decoders
from gaze_jax.weights.families import llava
from gaze_jax.weights.families import towers

Raw = Mapping[str, Any]
# Token of a naming -> regexes of names below it; "" for whole names.
Patterns = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Family:
  """One model_type of transformers.

  Attributes:
    parts: the keys of our parameters that such a checkpoint fills.
    model: (config.json, image processor or None) -> ModelConfig.
    namings: by name, all that are found in the wild.
    written: the naming that a new checkpoint gets.
    unused: (ModelConfig, config.json) -> what the file may hold and nothing
      here computes with; it is kept aside for the way back.
    dropped: buffers that follow from the config.
  """

  parts: tuple[str, ...]
  model: Callable[[Raw, Raw | None], config_lib.ModelConfig]
  namings: Mapping[str, tables.Naming]
  written: str
  unused: Callable[[config_lib.ModelConfig, Raw], Patterns]
  dropped: Patterns


def find(raw: Raw) -> Family:
  """The family of a config.json.

  Raises:
    ConversionError: it is none that is known; names all that are.
  """
  kind = raw.get("model_type")
  if llava.is_flat(raw):
    return _WHOLE  # some call it qwen2 or llama, to be tuned as text
  if kind in llava.FLAT_TYPES:
    raise errors.ConversionError(
      f"config.json: model_type = {kind!r} is of LLaVA's own code, whose config"
      " names its tower as mm_vision_tower, and this one has none; take the"
      " config.json of the whole model, or set model_type to that of the"
      " decoder if there is nothing else"
    )
  if kind in decoders.MODEL_TYPES and isinstance(
    raw.get("vision_config"), dict
  ):
    raise errors.ConversionError(
      f"config.json: model_type = {kind!r} is a decoder's, and vision_config"
      " is of a whole model: set model_type to llava or llava_onevision, as the"
      " checkpoint was, or take vision_config out"
    )
  if kind in _FAMILIES:
    return _FAMILIES[kind]
  known = ", ".join(sorted(_FAMILIES))
  raise errors.ConversionError(
    f"config.json: model_type = {kind!r} is no family that is known here;"
    f" known are {known}"
  )


def rules(
  model: config_lib.ModelConfig, part: str, raw: Raw
) -> list[tables.Rule]:
  """The table of one part, for a checkpoint with this config.json."""
  if part == "decoder":
    return decoders.rules(model.decoder)
  if part == "projector":
    return llava.rules(model)
  return towers.rules(model.vision, vision_type(raw))


def vision_type(raw: Raw) -> str:
  """model_type of the vision tower of a checkpoint that has one."""
  if find(raw) is _WHOLE:
    return llava.vision_type(raw)
  return towers.tower(raw)[0]


@functools.lru_cache(maxsize=8)
def shapes(model: config_lib.ModelConfig) -> dict[str, Any]:
  """Nested dict of `jax.ShapeDtypeStruct`: every parameter of a model."""
  init = lambda: nn.meta.unbox(mllm.init(model, jax.random.key(0)))
  return jax.eval_shape(init)


def _tower(raw: Raw, preprocessor: Raw | None) -> config_lib.ModelConfig:
  return config_lib.ModelConfig(vision=towers.config(raw, preprocessor))


def _beside_tower(model: config_lib.ModelConfig, raw: Raw) -> Patterns:
  unused = towers.unused(model.vision, vision_type(raw))
  return {"vision": unused, "": towers.beside(raw["model_type"])}


_TEXT = Family(
  parts=("decoder",),
  model=lambda raw, _: config_lib.ModelConfig(decoder=decoders.config(raw)),
  namings=decoders.NAMINGS,
  written="causal LM",
  unused=lambda model, raw: {},
  dropped=decoders.DROPPED,
)
_VISION = Family(
  parts=("vision",),
  model=_tower,
  namings=towers.NAMINGS,
  written="bare tower",
  unused=_beside_tower,
  dropped={"vision": towers.DROPPED},
)
_WHOLE = Family(
  parts=("vision", "projector", "decoder"),
  model=llava.config,
  namings=llava.NAMINGS,
  written="B (llava-hf)",
  unused=lambda model, raw: {
    "vision": towers.unused(model.vision, vision_type(raw))
  },
  dropped=decoders.DROPPED | {"vision": towers.DROPPED},
)
_FAMILIES = {
  **{kind: _TEXT for kind in decoders.MODEL_TYPES},
  **{kind: _VISION for kind in towers.MODEL_TYPES},
  **{kind: _WHOLE for kind in llava.MODEL_TYPES},
}
