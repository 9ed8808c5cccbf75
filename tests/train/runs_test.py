"""What a run takes along where its weights are written."""

import shutil

from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.demo import packages
from gaze_jax.train import runs
from gaze_jax.weights import store


def test_a_run_takes_its_tokenizer_and_template_along(tmp_path):
  source, to = tmp_path / "words", tmp_path / "hf"
  (source / "chat_templates").mkdir(parents=True)
  shutil.copyfile(tokenizer_lib.SHIPPED, source / "mine.json")
  (source / "chat_template.jinja").write_text("a")
  (source / "chat_templates" / "rag.jinja").write_text("b")
  to.mkdir()
  store.write_files(to, runs._tokenizer(str(source / "mine.json")))
  kept = sorted(str(p.relative_to(to)) for p in to.rglob("*") if p.is_file())
  assert kept == [
    "chat_template.jinja",
    "chat_templates/rag.jinja",
    "tokenizer.json",
  ]
  for nothing in ("", packages.SMOLLM2):
    assert not runs._tokenizer(nothing)
