"""The report as Markdown."""

from gaze_jax.evals import report


def condition(what, kv=None):
  out = {"what": what, "overall": what, "n": 4}
  out["interval_95"] = {"what": (0.1, 0.9), "overall": (0.2, 0.8)}
  if kv is not None:
    out |= dict(visual_kv_fraction=kv, unique_visual_kv_fraction=2 * kv)
  return out


def made(**changes):
  return (
    dict(
      step=7,
      data=dict(path=""),
      accuracy=dict(gaze=condition(0.5, 0.25), blind=condition(0.0)),
      routing_accuracy=dict(
        layers=[0.5, 0.25], random=0.1, n=3, region_counts_when_covered=0.1
      ),
      other_splits=dict(larger=dict(conditions=dict(gaze=condition(1.0, 0.1)))),
    )
    | changes
  )


def test_tables_by_hand():
  lines = report.markdown(made()).splitlines()
  assert lines[0] == "# Evaluation at step 7"
  head = "| condition | what | overall | n | visual KV | unique |"
  assert lines.count(head) == 2
  assert (
    "| gaze | 0.50 (0.10-0.90) | 0.50 (0.20-0.80) | 4 | 25.0 % | 50.0 % |"
    in lines
  )
  assert "| blind | 0.00 (0.10-0.90) | 0.00 (0.20-0.80) | 4 |  |  |" in lines
  assert "## Split: larger" in lines


def test_every_line_of_a_table_has_as_many_cells():
  rows = [r for r in report.markdown(made()).splitlines() if r[:1] == "|"]
  assert len({r.count("|") for r in rows}) == 1


def test_where_it_looked():
  text = report.markdown(made())
  assert "by layer: 50.0 %, 25.0 %; random regions 10.0 % (3" in text
  assert "Where it looked" not in report.markdown(made(routing_accuracy={}))


def test_a_kind_that_one_condition_lacks_is_left_blank():
  chat = condition(0.5)
  del chat["what"]
  text = report.markdown(made(accuracy=dict(gaze=condition(0.5), x=chat)))
  assert "| x |  | 0.50 (0.20-0.80) | 4 |  |  |" in text
