"""Whether a run may resume from a checkpoint: its code, config and inputs."""

import hashlib
import importlib.metadata
import json
import pathlib
import subprocess
from typing import Any

from gaze_jax import config as config_lib
from gaze_jax import schema
from gaze_jax import storage
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.train import pretrained

_ROOT = pathlib.Path(__file__).parents[2]
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")

# What a run reads, by name: numbers and hashes.
Inputs = dict[str, dict[str, int | str]]

# The field with the path of each of them.
_FIELDS = dict(
  data="data.path", tokenizer="data.tokenizer", weights="train.init_from"
)
# Fields that decide nothing beside what `Inputs` tells: paths, and which
# samples may be used.
_BY_CONTENT = frozenset(
  {
    *_FIELDS.values(),
    "data.image_folder",
    "data.mixture.path",
    "data.mixture.image_folder",
    "data.mixture.name",
    "data.max_skipped",
    "data.max_pixels",
  }
)
# Sections and fields that a run may change when it resumes: none of them
# changes what is computed, beyond the order in which numbers are summed. But
# for `train.steps`, which schedules depend on: `loop` prints what that does.
_FREE = frozenset(
  {
    "eval",
    "parallel",
    "data.eval_path",
    "data.workers",
    "train.steps",
    "train.accumulation",
    "train.log_every",
    "train.eval_every",
    "train.profile_steps",
    "train.profile_from",
    "train.wandb",
    "train.save_every",
    "train.keep",
    "train.keep_every",
    "train.keep_best",
    "train.peak_tflops",
    "model.vision.remat",
    "model.decoder.remat",
    "model.gaze.implementation",
    "model.gaze.decode_implementation",
    "model.gaze.chunk",
  }
)


def code_versions() -> dict[str, str]:
  """Versions by name: gaze_jax's (its commit in a repository), and others'."""
  return {
    "gaze_jax": _commit() or _version("gaze_jax"),
    **{name: _version(name) for name in _PACKAGES},
  }


def code_differences(old: dict[str, str], new: dict[str, str]) -> str:
  """What differs, in one line; empty if nothing does."""
  return ", ".join(
    f"{name} {old.get(name, 'unknown')} -> {new.get(name, 'unknown')}"
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  )


def model_inputs(config: config_lib.Config) -> Inputs:
  """The inputs of training that asking a model needs, too.

  Raises:
    samples.DataError: the tokenizer can't be read.
  """
  tokenizer = tokenizer_lib.Tokenizer.load(config.data.tokenizer)
  out: Inputs = dict(tokenizer=dict(hash=tokenizer.fingerprint()))
  if pretrained.frozen_parts(config):
    weights = [line.split() for line in pretrained.fingerprint(config)]
    out["weights"] = dict(weights)
  return out


def inputs(config: config_lib.Config, source: samples.Source) -> Inputs:
  """All that a run over a source of samples reads."""
  return model_inputs(config) | dict(data=source.content())


def input_differences(
  old: Inputs, new: Inputs, config: config_lib.Config
) -> list[str]:
  """Inputs of `new` that are others than in `old`, as `field: old -> new`.

  Args:
    old: of a checkpoint; what it does not hold is not compared.
    new: of now.
    config: of now.
  """
  out = []
  for name in sorted(old.keys() & new.keys()):
    if old[name] == {key: new[name].get(key) for key in old[name]}:
      continue
    section, field = _FIELDS[name].split(".")
    what = f"{_FIELDS[name]} = {getattr(getattr(config, section), field)!r}"
    if name == "data" and config.data.mixture:
      what = "data.mixture"
    why = _why(old[name], new[name]) if name == "data" else ""
    out.append(f"{what}: {_brief(old[name])} -> {_brief(new[name])}{why}")
  return out


def _brief(what: dict[str, int | str]) -> str:
  text = json.dumps(what, sort_keys=True)
  short = hashlib.sha256(text.encode()).hexdigest()[:12]
  return f"{what['samples']} samples, {short}" if "samples" in what else short


def _why(old: dict[str, int | str], new: dict[str, int | str]) -> str:
  same = lambda *keys: all(k in old and old[k] == new.get(k) for k in keys)
  if same("any_order"):
    return " (the same samples in another order)"
  if same("samples", "texts"):
    return " (other pictures)"
  return " (other texts)" if same("samples", "pictures") else ""


def config_differences(
  old: Any, new: Any, path: str = "", *, by_content: bool = True
) -> list[str]:
  """Fields that differ and may not, as `name: old -> new`.

  Args:
    old: a config as plain values, or a part of one.
    new: another.
    path: dotted name of the part.
    by_content: whether inputs are compared by what they hold
      (`input_differences`), and so may have another path.
  """
  free = _FREE | _BY_CONTENT if by_content else _FREE
  if isinstance(old, dict) and isinstance(new, dict):
    out = []
    for key in sorted(old.keys() | new.keys()):
      inner = f"{path}.{key}" if path else key
      if inner not in free:
        out += config_differences(
          old.get(key), new.get(key), inner, by_content=by_content
        )
    return out
  if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
    old, new = list(old), list(new)
    if len(old) == len(new) and any(isinstance(one, dict) for one in new):
      # Entries have one name for all: that of the list.
      return [
        difference
        for pair in zip(old, new, strict=True)
        for difference in config_differences(*pair, path, by_content=by_content)
      ]
  return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def latest_config(
  saved: config_lib.Config, path: storage.Path
) -> config_lib.Config:
  """The config that a run was started with last, if `config.json` has it.

  It may differ from that of a checkpoint in what a run is free to change; a
  file that is another run's, or no config, is left alone.

  Raises:
    schema.SchemaError: a newer gaze_jax has started it.
  """
  last = started_config(path)
  if last is None:
    return saved
  changed = config_differences(*map(config_lib.to_dict, (saved, last)))
  return saved if changed else last


def started_config(path: storage.Path) -> config_lib.Config | None:
  """What a run's `config.json` holds; None if there is none, or no config.

  Raises:
    schema.SchemaError: a newer gaze_jax has written it.
  """
  try:
    raw = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  if not isinstance(raw, dict):
    return None
  schema.read(raw, path, "run")
  raw.pop(schema.KEY, None)
  try:
    return config_lib.of_saved(raw)
  except config_lib.ConfigError:
    return None


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "unknown"  # run from its directory, not installed


def _commit() -> str | None:
  """The commit of this repository, if it is one; `-dirty` with changes."""
  if not (_ROOT / ".git").exists():
    return None
  command = ("git", "-C", str(_ROOT), "describe", "--always", "--dirty")
  try:
    done = subprocess.run(
      (*command, "--abbrev=12"), capture_output=True, text=True, timeout=20
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None
