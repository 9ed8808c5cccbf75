"""Serves a model to any client of the OpenAI API; docs/serve.md.

python launch/serve.py --workdir=DIR [--host=127.0.0.1] [--port=8000]
    [--api_key_file=FILE] [--allowed_hosts=NAME,NAME] [--batch_size=8]
    [--most_tokens=1024] [--parallel.tensor=8] [--dtype=bfloat16]
"""

import dataclasses
import functools
import sys

from absl import flags

from gaze_jax import api
from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.runtime import processes
from gaze_jax.serve import limits as limits_lib

try:
  from gaze_jax.serve import app
  from gaze_jax.serve import guard
  from gaze_jax.serve import run
except ModuleNotFoundError as error:
  app, _MISSING = None, error.name

_WORKDIR = cli.define_path("workdir", "a directory with a model", bucket=True)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "where to listen")
_PORT = flags.DEFINE_integer("port", 8000, "likewise; 0: a free one", 0, 65535)
_KEY = cli.define_path("api_key_file", "a file with the key of clients")
_HOSTS = flags.DEFINE_list("allowed_hosts", [], "names it may be called by")
_NAME = flags.DEFINE_string("model_name", "gaze", "what clients call the model")
_ROWS = flags.DEFINE_integer("batch_size", 8, "rows decoded together", 1)
_KEPT = flags.DEFINE_integer(
  "kept_bytes", None, "of pictures that were read", 0
)
_LIMITS = {
  field.name: flags.DEFINE_integer(
    f"most_{field.name}", int(field.default), "of a request; docs/serve.md", 1
  )
  for field in dataclasses.fields(limits_lib.Limits)
}
_PLACEMENT = cli.define_placement()
flags.mark_flag_as_required("workdir")


def main() -> None:
  if app is None:
    raise errors.GazeError(
      f"{_MISSING} is not installed: pip install -r requirements-serve.txt"
    )
  key = guard.read_key(_KEY.value, _HOST.value)
  placement = _PLACEMENT()
  if processes.count() > 1:
    raise errors.GazeError("one process serves; it takes all its devices")
  server = app.Server(
    api.load(_WORKDIR.value, **placement),
    functools.partial(print, file=sys.stderr, flush=True),
    name=_NAME.value,
    rows=_ROWS.value,
    kept_bytes=_KEPT.value,
    limits=limits_lib.Limits(**{k: flag.value for k, flag in _LIMITS.items()}),
    key=key,
    hosts=tuple(map(str.lower, _HOSTS.value)),
  )
  run.run(
    server, _HOST.value, _PORT.value, functools.partial(print, flush=True)
  )


if __name__ == "__main__":
  cli.main(main)
