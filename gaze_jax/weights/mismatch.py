"""Why tensors do not fit a config: the one reason, or every difference."""

import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax.weights import tables

_SHOWN = 3  # names in a line
# A leaf that a layer of some decoders has -> the first family with it.
_TELLS = {"q_norm.weight": "qwen3", "q_proj.bias": "qwen2"}
_LAYER = r"(?<!encoder\.)layers\.\d+\.self_attn\."
_WHOLE = re.compile(r"vision_tower\.|mm_projector\.|multi_modal_projector\.")


def explain(
  directory: pathlib.Path,
  raw: Mapping[str, Any],
  model: config_lib.ModelConfig,
  layout: str,
  entries: Sequence[tables.Entry],
  problems: Sequence[str],
  names: Collection[str],
) -> str:
  """The message of an error.

  Args:
    directory: the checkpoint's.
    raw: its config.json.
    model: what that says.
    layout: the layout of names that came nearest.
    entries: every leaf that should be filled, by that layout.
    problems: of `tables.differences`.
    names: of all tensors that are there.
  """
  parts = {entry.path[0] for entry in entries}
  kind = raw["model_type"]
  other = _other_family(model, parts, names)
  if other:
    found, tell = other
    return (
      f"{directory}: config.json has model_type = {kind!r}, and the tensors are"
      f" those of {found} ({tell}): take the config.json of the checkpoint, or"
      " set model_type (and architectures) to what they are"
    )
  wanted = tables.wanted(entries)
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
    f" place{many} (nearest layout of names: {layout}):\n  "
    + "\n  ".join(lines + hints)
  )


def _other_family(
  model: config_lib.ModelConfig, parts: Collection[str], names: Collection[str]
) -> tuple[str, str] | None:
  """Another family whose tensors these are, and one that tells."""
  if "decoder" not in parts:
    return None
  if "vision" not in parts:
    tells = [name for name in names if _WHOLE.search(name)]
    if tells:
      return "a whole LLaVA", min(tells)
  if not any(re.search(_LAYER, name) for name in names):
    return None
  is_there = {
    leaf: [n for n in names if re.search(_LAYER + re.escape(leaf) + "$", n)]
    for leaf in _TELLS
  }
  found = next((_TELLS[leaf] for leaf in _TELLS if is_there[leaf]), "llama")
  said = "qwen2" if model.decoder.qkv_bias else "llama"
  said = "qwen3" if model.decoder.qk_norm else said
  if found == said:
    return None
  tells = next((have for have in is_there.values() if have), [])
  return found, min(tells, default=f"they have no {' and no '.join(_TELLS)}")


def _whole_parts(
  entries: Sequence[tables.Entry], lines: list[str]
) -> list[str]:
  """One line for a part of which nothing is there."""
  for part in dict.fromkeys(entry.path[0] for entry in entries):
    wanted = tables.wanted(e for e in entries if e.path[0] == part)
    told = [f"missing: {n} {list(shape)}" for n, shape in wanted.items()]
    if len(told) > 1 and set(told) <= set(lines):
      one = f"{told[0]} and the {len(told) - 1} others of the {part}"
      lines = [one, *(line for line in lines if line not in told)]
  return lines


def _hints(lines: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
  hints = []
  if any(m.startswith("missing: ") and "lm_head.weight" in m for m in lines):
    hints.append(
      "tie_word_embeddings is false, so the head must be in the file; set it"
      " to true if the head is the embedding"
    )
  tables = ("embed_tokens.weight", "lm_head.weight")
  if any(m.startswith("shape of ") and t in m for m in lines for t in tables):
    text = raw.get("text_config") or raw
    hints.append(
      f"vocab_size = {text.get('vocab_size')} in config.json is not the rows"
      " of the embedding; if it was padded, set vocab_size to its rows"
    )
  return hints
