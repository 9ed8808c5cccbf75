"""Whether a run reads words as the weights do that it starts from."""

import pathlib

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import plugins
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.weights import store


def check(config: config_lib.Config) -> None:
  """Refuses a tokenizer that is not the one of `train.init_from`.

  Tokens may be added to it; those that it has keep their ids.

  Raises:
    errors.GazeError: naming the tokenizer that belongs to the weights, or the
      first token whose id differs.
  """
  named = config.data.tokenizer
  if not config.train.init_from or plugins.has_weights(named):
    return
  directory = pathlib.Path(config.train.init_from)
  stored = store.open_stored(directory)
  own = directory / store.SOURCE / "tokenizer.json"
  if "decoder" not in stored.parts:
    return
  if not named and (own.is_file() or stored.naming):
    raise errors.GazeError(
      "config: data.tokenizer is empty, which is the tokenizer of EmojiScenes,"
      f" and the decoder in {directory} was trained with another: set"
      f" data.tokenizer = {str(own)!r}"
    )
  if not named or not own.is_file():
    return
  vocabulary = tokenizer_lib.read(pathlib.Path(named)).get_vocab()
  for token, i in sorted(
    tokenizer_lib.read(own).get_vocab().items(), key=lambda pair: pair[1]
  ):
    if vocabulary.get(token) != i:
      raise errors.GazeError(
        f"config: data.tokenizer = {named!r} is not that of the weights in"
        f" {directory}: {token!r} is id {vocabulary.get(token)} in it, and {i}"
        f" in theirs; set data.tokenizer = {str(own)!r}"
      )
