"""The files of sources that have one to train on and one held out."""

from gaze_jax import config as config_lib


def of_split(config: config_lib.Config, split: str, what: str) -> str:
  """`data.path` for "train", or `data.eval_path` for "new".

  Args:
    config: whose.
    split: of these.
    what: the path leads to, for errors.

  Raises:
    config_lib.ConfigError: it is empty, or there is no such split.
  """
  data = config.data
  paths = dict(train=data.path, new=data.eval_path)
  if split not in paths:
    raise config_lib.ConfigError(
      f"{data.source} has no split {split!r}; it has train and new"
    )
  if not data.path and split == "train":
    raise config_lib.ConfigError(
      f"config: data.source = {data.source!r} needs data.path, {what}"
    )
  if not paths[split]:
    raise config_lib.ConfigError(
      f"config: data.eval_path is empty: it names {what}, held out for"
      " evaluation"
    )
  return paths[split]


def splits(config: config_lib.Config) -> dict[str, config_lib.Config]:
  """The splits that evaluation reads."""
  return {"new": config} if config.data.eval_path else {}
