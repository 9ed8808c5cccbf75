"""The same samples in every format that can be prepared."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

COUNT = 24


def _add(tar, name, content):
  member = tarfile.TarInfo(name)
  member.size = len(content)
  tar.addfile(member, io.BytesIO(content))


def _names(row):
  names = row.get("image", [])
  return [names] if isinstance(names, str) else names


@pytest.fixture(scope="session")
def formats(tmp_path_factory):
  """A folder with a.json, a.jsonl, a.tar, a.parquet, and media in images/."""
  import pyarrow
  from pyarrow import parquet

  folder = tmp_path_factory.mktemp("formats")
  images = folder / "images"
  images.mkdir()
  rng = np.random.default_rng(0)
  rows = []
  for i in range(COUNT):
    names = [f"{i}_{j}.{'png' if i % 3 else 'jpg'}" for j in range(i % 4)]
    for name in names:
      pixels = rng.integers(0, 256, (30 + i, 40, 3), np.uint8)
      Image.fromarray(pixels).save(images / name)
    question = "<image>" * len(names) + f"What is number {i}?"
    row = dict(
      id=f"n{i}",
      conversations=[
        {"from": "human", "value": question},
        {"from": "gpt", "value": f"It is {'very ' * (i % 5)}red."},
      ],
    )
    if names:
      row["image"] = names if i % 2 else (names * 2)[: len(names)]
    if len(names) == 1:
      row["image"] = names[0]
    rows.append(row)
  (folder / "a.json").write_text(json.dumps(rows))
  (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  with tarfile.open(folder / "a.tar", "w") as tar:
    for i, row in enumerate(rows):
      _add(tar, f"part/{i:04d}.json", json.dumps(row).encode())
      for j, name in enumerate(_names(row)):
        content = (images / name).read_bytes()
        _add(tar, f"part/{i:04d}.{j}.{name[-3:]}", content)
  table = [
    dict(
      id=row["id"],
      images=[
        dict(bytes=(images / name).read_bytes(), path=name)
        for name in _names(row)
      ],
      conversations=row["conversations"],
    )
    for row in rows
  ]
  parquet.write_table(
    pyarrow.Table.from_pylist(table), folder / "a.parquet", row_group_size=5
  )
  return folder
