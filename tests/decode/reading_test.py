"""Which programs read a prompt."""

from gaze_jax.decode import context
from gaze_jax.decode import reading
from gaze_jax.layout import row as row_lib

UNIT = row_lib.Unit(5, 5)


def test_logits_are_of_the_last_text_alone(tiny, tiny_params, row, monkeypatch):
  """The head would read its whole table for each text before a picture."""
  program, made = reading.text_program, []

  def text_program(*args, **options):
    cache, logits, traced = program(*args, **options)
    made.append(None if logits is None else logits.shape)
    return cache, logits, traced

  monkeypatch.setattr(reading, "text_program", text_program)
  text = row_lib.Text
  batch = row([text([1, 2]), UNIT, text([3]), UNIT, text([5, 6, 7])])
  read = reading.read(tiny_params, tiny, context.empty(tiny), batch, 2)
  vocabulary = tiny.decoder.vocab_size
  assert made == [None, None, (1, 1, vocabulary)]
  assert read.logits.shape == (1, vocabulary)
