"""Our weights against transformers' own run of a checkpoint.

Shapes do not show every mistake: query and key of one size may be swapped. So
the same inputs go through both models, in float32. This module alone imports
torch and transformers, and only `launch/convert.py --verify` imports it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import types
from gaze_jax.data import prompts
from gaze_jax.data import units
from gaze_jax.layout import row as row_lib
from gaze_jax.models import mllm
from gaze_jax.models import vision
from gaze_jax.weights import hf

# Largest error that is rounding, as a share of the largest number there is.
TOLERANCE = 1e-3
_TOKENS = 24  # of text


class VerifyError(errors.GazeError):
  """Our numbers are not those of transformers."""


@dataclasses.dataclass(frozen=True)
class Compared:
  """One output of both models.

  Attributes:
    what: its name.
    error: largest absolute difference.
    scale: largest absolute number of transformers' output.
  """

  what: str
  error: float
  scale: float

  def __str__(self) -> str:
    return (
      f"{self.what}: largest error {self.error:.2e}, scale {self.scale:.3g}"
    )


def verify(
  config: config_lib.Config, params: mllm.Params, reference: pathlib.Path
) -> list[Compared]:
  """Runs random inputs through both models and compares.

  Args:
    config: of the model that is checked.
    params: its parameters.
    reference: a checkpoint that transformers loads.

  Raises:
    VerifyError: an output differs by more than rounding; names each.
    errors.GazeError: the checkpoint can't be used, or has other parts.
  """
  raw, family, _ = hf.read_configs(reference)
  model = _transformers(reference, raw)
  missing = set(family.parts) - params.keys()
  if missing:
    raise errors.GazeError(
      f"the weights to verify have no {', '.join(sorted(missing))}, and"
      f" {reference} has; verify them with what they came from"
    )
  results = []
  if "vision" in family.parts:
    results.append(_vision(params, config.model, model))
  if "decoder" in family.parts:
    results.append(_text(params, config.model, model))
  if "projector" in family.parts:
    results.append(_whole(params, config.model, model))
  bad = [r for r in results if not r.error <= TOLERANCE * r.scale]
  if bad:
    raise VerifyError(
      f"our numbers are not those of transformers with {reference}: "
      + "; ".join(map(str, bad))
    )
  return results


def _transformers(reference: pathlib.Path, raw: Any) -> Any:
  """The model as transformers loads it, float32; no code of its own runs."""
  names = raw.get("architectures") or ["(none)"]
  kind = getattr(transformers, names[0], None)
  if kind is None:
    raise errors.GazeError(
      f"{reference}/config.json: architectures = {names} is no class of"
      " transformers; write the checkpoint anew with --export, and verify that"
    )
  model, found = kind.from_pretrained(
    reference,
    dtype="float32",
    local_files_only=True,
    trust_remote_code=False,
    attn_implementation="eager",
    output_loading_info=True,
  )
  if found["missing_keys"]:
    raise errors.GazeError(
      f"{reference}: transformers does not find"
      f" {', '.join(sorted(found['missing_keys'])[:4])} in it and would draw"
      " them at random; write it anew with --export and verify that"
    )
  return model.eval()


def _vision(
  params: mllm.Params, config: config_lib.ModelConfig, model: Any
) -> Compared:
  """The hidden state that the projector reads, of two random pictures."""
  c = config.vision
  tower = _first(model, "model.vision_tower", "vision_model", "")
  rng = np.random.default_rng(0)
  if c.max_patches:
    images, inputs = _random_patches(rng, c)
  else:
    size = (2, c.image_size, c.image_size, 3)
    images = rng.normal(size=size).astype(np.float32)
    inputs = dict(pixel_values=images.transpose(0, 3, 1, 2))
  with torch.no_grad():
    out = tower(**_tensors(inputs), output_hidden_states=True)
  state = out.hidden_states[c.layers_used]
  want = (out.last_hidden_state if c.final_norm else state).numpy()
  apply = jax.jit(vision.ViT(c).apply)
  got = np.asarray(apply({"params": params["vision"]}, images))
  want = want[:, int(c.class_token) :]
  if c.max_patches:
    seen = inputs["pixel_attention_mask"].astype(bool)
    got, want = got[seen], want[seen]
  return _compare("features of pictures", got, want)


def _random_patches(
  rng: np.random.Generator, c: config_lib.VisionConfig
) -> tuple[types.Patches, dict[str, np.ndarray]]:
  """Two pictures of other aspects, as patches for both models."""
  side = c.position_grid
  grid = np.array([[side, side - 1], [side - 2, side]], np.int32)
  shape = (2, c.max_patches, 3 * c.patch_size**2)
  mask = np.arange(c.max_patches) < grid.prod(1)[:, None]
  pixels = rng.normal(size=shape).astype(np.float32) * mask[..., None]
  inputs = dict(
    pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=grid
  )
  return types.Patches(pixels, grid), inputs


def _text(
  params: mllm.Params, config: config_lib.ModelConfig, model: Any
) -> Compared:
  """Logits of random tokens."""
  tokens = _random_tokens(config)
  with torch.no_grad():
    want = model(input_ids=torch.tensor(tokens[None])).logits[0, :-1].numpy()
  got = text_logits(params, config, tokens)
  return _compare("logits of text", got, want)


def _random_tokens(config: config_lib.ModelConfig) -> np.ndarray:
  """int [_TOKENS], of the start of the vocabulary: marks are at its end."""
  some = min(config.decoder.vocab_size - 2, 256)
  return np.random.default_rng(0).integers(0, some, _TOKENS)


def text_logits(
  params: mllm.Params, config: config_lib.ModelConfig, tokens: np.ndarray
) -> np.ndarray:
  """float32 [n - 1, V], what follows each of int [n] tokens but the last."""
  before = row_lib.Text(tokens[:1].tolist())
  said = row_lib.Text(tokens[1:].tolist(), question=0)
  prompt = prompts.Prompt((before, said), np.zeros((0, 1, 1, 3), np.float32))
  return logits(params, config, prompt)


def _whole(
  params: mllm.Params, config: config_lib.ModelConfig, model: Any
) -> Compared:
  """Logits of text after one picture, through all three parts."""
  # Context tokens are ours alone.
  gaze = dataclasses.replace(config.gaze, context_tokens=0)
  config = dataclasses.replace(config, gaze=gaze)
  projector = {k: v for k, v in params["projector"].items() if k != "context"}
  rng = np.random.default_rng(0)
  side = config.vision.image_size
  picture = rng.integers(0, 256, (side, 2 * side - 5, 3), np.uint8)
  seen = units.of_images([picture], config)[0]
  text = _random_tokens(config).tolist()
  before, said = row_lib.Text(text[:4]), row_lib.Text(text[4:], question=0)
  prompt = prompts.Prompt((before, *seen.units, said), seen.pixels)
  got = logits(params | {"projector": projector}, config, prompt)
  marks = [model.config.image_token_index] * sum(u.tokens for u in seen.units)
  pixels = np.asarray(vision.normalise(seen.pixels, config.vision))
  pixels = pixels.transpose(0, 3, 1, 2)
  inputs = dict(input_ids=np.array([text[:4] + marks + text[4:]]))
  if config.tiling.kind == "anyres":
    sizes = np.array([picture.shape[:2]])
    inputs |= dict(pixel_values=pixels[None], image_sizes=sizes)
  else:
    inputs |= dict(pixel_values=pixels)
  with torch.no_grad():
    out = model(**_tensors(inputs)).logits[0, -len(text) + 3 : -1].numpy()
  return _compare("logits after a picture", got, out)


def logits(
  params: mllm.Params,
  config: config_lib.ModelConfig,
  prompt: prompts.Prompt,
) -> np.ndarray:
  """Logits that predict each token of the answer in a prompt, densely.

  Args:
    params: of the decoder, and of the rest if there are pictures.
    config: the model; every region is read, whatever its budget.
    prompt: with one part whose `question` is 0.

  Returns:
    float32 [tokens of the answer, V].
  """
  gaze = dataclasses.replace(config.gaze, budget="fixed")
  config = dataclasses.replace(config, gaze=gaze)
  batch = prompts.batch([prompt], config)
  every = jnp.array([batch.region_slots.shape[1]])
  out = _apply(params, config, batch, every)
  return np.asarray(out.logits[0])


_apply = functools.partial(jax.jit, static_argnums=1)(mllm.apply)


def _compare(what: str, got: np.ndarray, want: np.ndarray) -> Compared:
  error, scale = np.abs(got - want).max(), np.abs(want).max()
  return Compared(what, float(error), float(scale))


def _first(model: Any, *names: str) -> Any:
  """The first submodule that is there; "" is the model itself."""
  for name in names:
    try:
      return model.get_submodule(name)
    except AttributeError:
      continue
  raise errors.GazeError(f"{type(model).__name__} has none of {names}")


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  return {
    k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items()
  }
