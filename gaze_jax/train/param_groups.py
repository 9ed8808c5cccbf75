"""Which parameters train, and how fast: `train.groups`, by dotted path.

A path is where a parameter is: "projector.context",
"decoder.layers.query.weight". Groups are the finer grain on what the training
state holds; whole frozen parts are never in it (`train/pretrained.py`).
"""

import re
from typing import Any

from flax import traverse_util

from gaze_jax import config as config_lib
from gaze_jax import errors

Params = dict[str, Any]


class GroupError(errors.GazeError):
  """`train.groups` does not match each parameter exactly once."""


def flat(params: Params) -> dict[str, Any]:
  """Leaves of a nested dict by dotted path."""
  return traverse_util.flatten_dict(params, sep=".")


def share(train: config_lib.TrainConfig, path: str) -> float:
  """The share of the learning rate that a checked parameter has; 0: none."""
  matching = (of for pattern, of in train.groups if re.fullmatch(pattern, path))
  return next(matching, 1.0)


def check(train: config_lib.TrainConfig, params: Params) -> None:
  """Holds the groups to the parameters of a training state.

  Raises:
    GroupError: a parameter that no group matches or several do, or a group
      that matches none; names them all. Or nothing trains.
  """
  patterns = [pattern for pattern, _ in train.groups]
  if not patterns:
    return
  found = {
    path: [p for p in patterns if re.fullmatch(p, path)]
    for path in flat(params)
  }
  used = {pattern for matching in found.values() for pattern in matching}
  wrong = [
    f"{' and '.join(map(repr, matching))} match {path}"
    for path, matching in found.items()
    if len(matching) > 1
  ]
  wrong += [f"{p!r} matches nothing" for p in patterns if p not in used]
  if missing := [path for path, matching in found.items() if not matching]:
    wrong.append(f"none matches {', '.join(missing)}")
  if wrong:
    raise GroupError(
      f"train.groups must match every parameter once: {'; '.join(wrong)}"
    )
  if not any(of for _, of in train.groups):
    raise GroupError("train.groups has share 0 for everything: nothing trains")


def split(
  train: config_lib.TrainConfig, params: Params
) -> tuple[Params, Params]:
  """What trains, and what does not: two nested dicts that `merge` joins.

  Raises:
    GroupError: as `check`.
  """
  check(train, params)
  pick = lambda trains: traverse_util.unflatten_dict(
    {
      path: leaf
      for path, leaf in flat(params).items()
      if (share(train, path) > 0) == trains
    },
    sep=".",
  )
  return pick(True), pick(False)


def scaled(train: config_lib.TrainConfig, updates: Params) -> Params:
  """Updates of what trains, each times the share of its group.

  An update is the learning rate times something, decay included: so this is
  a learning rate of its own for each group.
  """
  return traverse_util.unflatten_dict(
    {path: share(train, path) * x for path, x in flat(updates).items()},
    sep=".",
  )


def merge(one: Params, other: Params) -> Params:
  """Two nested dicts in one; where both have a leaf, that of `other`."""
  return traverse_util.unflatten_dict({**flat(one), **flat(other)}, sep=".")


def pick(params: Params, like: Params) -> Params:
  """The leaves of a nested dict that another one has, too."""
  there = flat(params)
  return traverse_util.unflatten_dict(
    {path: there[path] for path in flat(like)}, sep="."
  )
