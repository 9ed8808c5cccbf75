"""Files that an answer leaves, and names that are refused before any work."""

import json

import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax import errors
from gaze_jax.decode import accounting


@pytest.fixture
def answer(model, picture):
  reply = model().generate(
    "what is it?", images=[picture()], trace=True, max_tokens=3, share=0.3
  )
  cost = accounting.Accounting(25, 6.0, 9.0, 2048, 64, 1.5, 2.5)
  return reply, cost


@pytest.mark.parametrize(
  "which, name, says",
  [
    ("picture", "a.webm", r"a\.webm: \.webm is not a format of pictures"),
    ("picture", "a", "no ending is not a format of pictures"),
    ("animation", "a.png", r"\.png is not a format of animations"),
    ("html", "a.txt", r"a\.txt: the viewer is a page"),
    *(
      (which, f"no/{name}", "there is no folder")
      for which, name in [
        *(("picture", "a.png"), ("animation", "a.gif")),
        *(("html", "a.html"), ("json", "a.json")),
      ]
    ),
  ],
)
def test_names_are_refused(tmp_path, which, name, says):
  with pytest.raises(errors.GazeError, match=says):
    api.Outputs(**{which: str(tmp_path / name)}).check_names()


def test_layers_and_heads_are_those_of_the_model(model):
  api.Outputs(layers=[0, 1], heads=[3]).check_model(model())
  api.Outputs().check_model(model())
  with pytest.raises(errors.GazeError, match="no layer 2"):
    api.Outputs(layers=[0, 2]).check_model(model())
  with pytest.raises(errors.GazeError, match="no head 4"):
    api.Outputs(heads=[4]).check_model(model())


def test_every_file_is_written(answer, tmp_path):
  names = {
    kind: str(tmp_path / name)
    for kind, name in [
      *(("picture", "a.png"), ("animation", "b.gif")),
      *(("html", "c.html"), ("json", "d.json")),
    ]
  }
  out = api.Outputs(**names)
  out.check_names()
  assert out.write(*answer) == list(names.values())
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    *("a.png", "b.gif", "c.html", "d.json")
  ]
  with Image.open(names["animation"]) as film:
    assert film.format == "GIF"
  page = (tmp_path / "c.html").read_text(encoding="utf-8")
  assert "what is it?" in page and "1.50 ms, 2.50 ms" in page
  told = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
  assert told.pop("programs_compiled") >= 0
  assert told.pop("accounting") == dict(
    visual_tokens=25,
    entries_per_query_head=6.0,
    unique_entries_per_kv_head=9.0,
    kv_bytes=2048,
    descriptor_bytes=64,
    gaze_milliseconds=1.5,
    dense_milliseconds=2.5,
    visual_kv_fraction=0.24,
    unique_visual_kv_fraction=0.36,
  )
  assert told == dict(
    question="what is it?",
    answer=answer[0].text,
    reason="length",
    tokens=3,
    budget=3,
    regions=9,
  )


def test_pictures_show_the_layers_and_heads_that_were_asked_for(
  answer, tmp_path
):
  def drawn(name, **which):
    path = tmp_path / name
    assert api.Outputs(picture=str(path), **which).write(*answer) == [str(path)]
    with Image.open(path) as image:
      return image.tobytes()

  assert drawn("all.png") == drawn("each.png", layers=[0, 1])
  one = drawn("one.png", layers=[1], heads=[2])
  assert one != drawn("other.png", layers=[0], heads=[2])
  with Image.open(tmp_path / "one.png") as image:
    assert image.tobytes() == answer[0].picture(layers=[1], heads=[2]).tobytes()


def test_nothing_is_written_unasked(answer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert api.Outputs(picture="").write(*answer) == []
  assert not list(tmp_path.iterdir())
