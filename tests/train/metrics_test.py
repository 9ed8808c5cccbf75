"""The JSONL file, above all what a resume makes of it."""

import json

from gaze_jax.train import metrics


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def write(workdir, done, *steps):
  writer = metrics.LogWriter(workdir, done)
  for step in steps:
    writer.write(step, dict(loss=step / 2))
  writer.close()


def test_a_line_a_step(tmp_path):
  write(tmp_path, 0, 1, 2)
  assert lines(tmp_path) == [dict(step=1, loss=0.5), dict(step=2, loss=1.0)]
  assert list((tmp_path / "tensorboard").glob("events.*"))


def test_resume_keeps_done_steps_and_cuts_later_ones(tmp_path):
  write(tmp_path, 0, 1, 2, 3, 4)
  write(tmp_path, 2, 3)
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
  assert not list(tmp_path.glob("*.partial"))


def test_a_torn_last_line_is_dropped(tmp_path):
  write(tmp_path, 0, 1)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 2, "lo')
  write(tmp_path, 2, 3)
  assert [line["step"] for line in lines(tmp_path)] == [1, 3]


def test_lines_that_are_no_objects_are_dropped(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('3\n{"step": 1}\n{"loss": 2}\n')
  write(tmp_path, 1)
  assert lines(tmp_path) == [dict(step=1)]


def test_a_fresh_run_starts_the_file_anew(tmp_path):
  write(tmp_path, 0, 1, 2)
  write(tmp_path, 0, 1)
  assert [line["step"] for line in lines(tmp_path)] == [1]
