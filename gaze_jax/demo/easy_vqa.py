"""easy-VQA as rows in LLaVA's format: published pictures and questions.

python -m gaze_jax.demo.easy_vqa SPLIT FILE

writes the rows of a split (train, test) for launch/prepare.py, and prints the
folder that their image names are relative to.

Victor Zhou's easy-VQA (PyPI package easy-vqa, MIT) has 5,000 pictures of 64 x
64 pixels with one coloured shape each, and 48,248 questions, in two splits of
its own. Each question is a sample of its own: beside others about its picture
it would be answered by what they say.
"""

import json
import pathlib
import sys
from typing import Any

from gaze_jax import errors
from gaze_jax import whole_file
from gaze_jax.demo import packages

SPLITS = ("train", "test")


def folder(split: str) -> pathlib.Path:
  """The folder of a split's pictures.

  Raises:
    samples.DataError: the package is not installed.
  """
  inside = f"data/{split}/images"
  return packages.folder("easy-VQA", "easy_vqa", inside, "easy-vqa")


def rows(split: str) -> list[dict[str, Any]]:
  """A row for each question of a split, in the order of its file.

  Image names are relative to `folder`.

  Raises:
    samples.DataError: the package is not installed.
  """
  file = folder(split).parent / "questions.json"
  return [
    {
      "id": str(number),
      "image": f"{picture}.png",
      "conversations": [
        {"from": "human", "value": f"<image>\n{question}"},
        {"from": "gpt", "value": answer},
      ],
    }
    for number, (question, answer, picture) in enumerate(
      json.loads(file.read_text(encoding="utf-8"))
    )
  ]


def main(split: str, out: str) -> None:
  """Writes the rows of a split, and prints the folder of its pictures."""
  errors.check_folder(out)
  whole_file.write(pathlib.Path(out), json.dumps(rows(split)))
  print(folder(split))


if __name__ == "__main__":
  if len(sys.argv) != 3 or sys.argv[1] not in SPLITS:
    sys.exit("usage: python -m gaze_jax.demo.easy_vqa train|test OUT.json")
  try:
    main(*sys.argv[1:])
  except errors.GazeError as error:
    sys.exit(f"error: {error}")
