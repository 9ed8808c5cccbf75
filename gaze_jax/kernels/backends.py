"""The one seam between the method and what a device does best.

An operation is a function in plain jnp, its oracle, in the file of its name.
A backend brings a faster form of it in a file of its own, OPERATION_BACKEND.py,
which has

  NAME           what a config calls the form, and the log
  supported      of sizes, by keyword: None, or the reason why it can't serve
  OPERATION      with the oracle's signature
  NOTE           if there is one, what the log adds to NAME

and the operation's table below lists the files, the best first. So a form for
another device is one more file and one more name here: a kernel for GPUs over
pages would be `attend_pages_gpu`, before `attend_pages` in ATTEND_PAGES.

Nothing outside kernels/ imports the file of a form.
"""

import re
from types import ModuleType

from absl import logging

from gaze_jax import errors
from gaze_jax.kernels import attend_linear
from gaze_jax.kernels import attend_linear_cpu
from gaze_jax.kernels import attend_pages
from gaze_jax.kernels import attend_pages_cpu
from gaze_jax.kernels import attend_pages_tpu
from gaze_jax.kernels import attend_regions_tpu
from gaze_jax.kernels import attend_segments_tpu
from gaze_jax.kernels import attend_visual
from gaze_jax.kernels import attend_visual_gpu
from gaze_jax.kernels import attend_visual_tpu
from gaze_jax.kernels import region_scores
from gaze_jax.kernels import region_scores_cpu
from gaze_jax.kernels import table_product
from gaze_jax.kernels import table_product_cpu
from gaze_jax.kernels import target

Forms = tuple[ModuleType, ...]

# New tokens to listed pages of the visual cache, and to the linear cache.
ATTEND_PAGES: Forms = (attend_pages_tpu, attend_pages_cpu, attend_pages)
ATTEND_LINEAR: Forms = (attend_linear_cpu, attend_linear)
# The units of a prompt, to what came before and to each other. Where no form
# serves, one mask does for all (ops/decode/prompt_units.py).
ATTEND_SEGMENTS: Forms = (attend_segments_tpu,)
# Whole rows: text to its regions, and visual tokens to each other.
ATTEND_REGIONS: Forms = (attend_regions_tpu,)
ATTEND_VISUAL: Forms = (attend_visual_tpu, attend_visual)
# Or, beside ops/parallel/chunked.py, all slots that choose no regions. Where
# none of these serves, chunked.py does alone.
WHOLE_ROWS: Forms = (*ATTEND_REGIONS, attend_visual_gpu)
# Products of few rows with a large table.
REGION_SCORES: Forms = (region_scores_cpu, region_scores)
TABLE_PRODUCT: Forms = (table_product_cpu, table_product)


class ImplementationError(errors.GazeError):
  """An implementation that was asked for and can't serve."""


def best(forms: Forms, **sizes) -> ModuleType:
  """The first form that serves these sizes; an oracle serves all."""
  form = first(forms, **sizes)
  assert form
  return form


def first(forms: Forms, **sizes) -> ModuleType | None:
  """The first form that serves these sizes; None where none does."""
  return next((f for f in forms if f.supported(**sizes) is None), None)


def choose(
  field: str, asked: str, forms: Forms, otherwise: str = "", **sizes
) -> ModuleType | None:
  """The form that a config asks for.

  An automatic choice is logged, once for each kind of reason.

  Args:
    field: of the config, for messages.
    asked: its value: "auto" or a form's NAME.
    forms: of the operation, the best first.
    otherwise: what the config calls that which serves where no form does.
    **sizes: as the forms' `supported` takes them.

  Returns:
    The form; None where none serves and none was asked for.

  Raises:
    ImplementationError: the form that was asked for can't serve.
  """
  reasons = {}
  for form in forms:
    if asked in ("auto", form.NAME):
      reason = form.supported(**sizes)
      if reason is None:
        break
      reasons[form] = reason
  else:
    form = None
  if asked == "auto":
    _log(field, form, otherwise, reasons)
  elif form is None:
    reason = next(iter(reasons.values()))
    raise ImplementationError(
      f"{field} = {asked!r} can't serve: {reason}; use 'auto'"
    )
  return form


def layers_apart() -> bool:
  """Whether a decoder's layers are best given as arrays of their own.

  See `products.OneOf`.
  """
  return target.target().platform == "cpu"


def copies_what_is_kept() -> bool:
  """Whether a layer is best told what to keep for its backward pass.

  XLA:CPU passes over it three times: zeros for all layers, a copy into them,
  and one out. What comes of a product by a few operations on each number is
  made again in less, so without remat it is not kept either.
  """
  return target.target().platform == "cpu"


_logged: set[tuple[str, str, str]] = set()


def _log(
  field: str,
  form: ModuleType | None,
  otherwise: str,
  reasons: dict[ModuleType, str],
) -> None:
  """Logs once which form serves, and why no better one does.

  That is a warning where the better one is for this platform, by the name of
  its file; elsewhere it is not meant to serve.
  """
  name = form.NAME if form else otherwise
  suffix = f"_{target.target().platform}"
  own = [why for x, why in reasons.items() if x.__name__.endswith(suffix)]
  reason = next(iter((*own, *reasons.values())), "")
  kind = re.sub(r"\d+", "", reason)  # sizes make no other reason
  if (field, name, kind) in _logged:
    return
  _logged.add((field, name, kind))
  if own or not hasattr(form, "NOTE"):
    because = f": {reason}" if reason else ""
  else:
    because = f": {form.NOTE}"
  logging.log(
    logging.WARNING if own else logging.INFO,
    f"{field}: auto takes {name!r}{because}",
  )
