"""Our models in lmms-eval: `lmms-eval --model gaze_jax`; see docs/evaluate.md.

lmms-eval imports this for each of its runs, so it imports nothing.
"""

from typing import Any


def manifest() -> Any:
  """What the entry point gives to lmms-eval: the name and the class."""
  from lmms_eval.models import registry_v2  # only there in an lmms-eval run

  return registry_v2.ModelManifest(
    model_id="gaze_jax", simple_class_path="gaze_jax.lmms.model.GazeJax"
  )
