"""Talks with a model in a terminal; /help lists what else it does.

python launch/chat.py --workdir=DIR [--image=FILE,FILE] [--share=0.25]
    [--parallel.tensor=8] [--dtype=bfloat16]

Of several processes process 0 reads what is typed, for all.
"""

import contextlib
import sys
from collections.abc import Iterator

from absl import flags

from gaze_jax import api
from gaze_jax import cli
from gaze_jax.runtime import processes

_WORKDIR = cli.define_path("workdir", "a directory with a model", bucket=True)
_IMAGE = flags.DEFINE_list("image", [], "image files of the first question")
_AFRESH = flags.DEFINE_bool(
  "afresh", False, "ask each question after the images alone"
)
_OPTIONS = cli.define_options()
_PLACEMENT = cli.define_placement()
flags.mark_flag_as_required("workdir")


def main() -> None:
  chat = api.Chat(
    api.load(_WORKDIR.value, **_PLACEMENT()),
    _write,
    _OPTIONS(),
    # Several processes would stop at different tokens.
    cli.interruptible if processes.count() == 1 else contextlib.nullcontext,
    afresh=_AFRESH.value,
    writes=processes.is_first(),
  )
  chat.show_images(_IMAGE.value)
  chat.run(_lines())


def _write(text: str) -> None:
  print(text, end="", flush=True)


def _lines() -> Iterator[str]:
  """What is typed, with a prompt if somebody types it."""
  while True:
    line = None
    if processes.is_first():
      with contextlib.suppress(EOFError):
        line = input("> " if sys.stdin.isatty() else "")
    if (line := processes.share(line)) is None:
      return
    yield line


if __name__ == "__main__":
  cli.main(main, leave=processes.leave)
