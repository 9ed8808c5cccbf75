"""What a run was trained by: its code and config, and what may differ."""

import importlib.metadata
import pathlib
import subprocess
from typing import Any

_ROOT = pathlib.Path(__file__).parents[2]
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")


# Sections and fields that a run may change when it goes on: none of them
# changes what is computed, beyond the order in which numbers are summed.
_FREE = frozenset(
  {
    "eval",
    "parallel",
    "data.workers",
    "train.accumulation",
    "train.log_every",
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


def code() -> dict[str, str]:
  """Versions by name: gaze_jax's (its commit in a repository), and others'."""
  return {
    "gaze_jax": _commit() or _version("gaze_jax"),
    **{name: _version(name) for name in _PACKAGES},
  }


def changed(old: dict[str, str], new: dict[str, str]) -> str:
  """What differs, in one line; empty if nothing does."""
  return ", ".join(
    f"{name} {old.get(name, 'unknown')} -> {new.get(name, 'unknown')}"
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  )


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """Fields that differ, as `name: old -> new`, but those that are free to."""
  if isinstance(old, dict) and isinstance(new, dict):
    out = []
    for key in sorted(old.keys() | new.keys()):
      inner = f"{path}.{key}" if path else key
      if inner not in _FREE:
        out += differences(old.get(key), new.get(key), inner)
    return out
  if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
    old, new = list(old), list(new)
  return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


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
    said = subprocess.run(
      (*command, "--abbrev=12"), capture_output=True, text=True, timeout=20
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return said.stdout.strip() if said.returncode == 0 else None
