"""Talks with a model in a terminal; /help lists what else it does.

python launch/chat.py --workdir=DIR [--image=FILE,FILE] [--share=0.25]
"""

import sys
from collections.abc import Iterator

from absl import flags

from gaze_jax import api
from gaze_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "a directory with a model")
_IMAGE = flags.DEFINE_list("image", [], "image files of the first question")
_AFRESH = flags.DEFINE_bool(
  "afresh", False, "ask each question after the images alone"
)
_OPTIONS = cli.define_options()
flags.mark_flag_as_required("workdir")


def main() -> None:
  chat = api.Chat(
    api.load(_WORKDIR.value),
    _write,
    _OPTIONS(),
    cli.interruptible,
    afresh=_AFRESH.value,
  )
  chat.show_images(_IMAGE.value)
  chat.run(_lines())


def _write(text: str) -> None:
  print(text, end="", flush=True)


def _lines() -> Iterator[str]:
  """What is typed, with a prompt if somebody types it."""
  while True:
    try:
      yield input("> " if sys.stdin.isatty() else "")
    except EOFError:
      return


if __name__ == "__main__":
  cli.main(main)
