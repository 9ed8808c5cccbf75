"""Numbers of the server, for Prometheus."""

from collections.abc import Callable, Sequence

import prometheus_client

from gaze_jax.serve import engine as engine_lib

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
  """Counts; `text` writes what Prometheus reads.

  Args:
    engine: whose queue and memory are told.

  Attributes:
    requests: ended, by HTTP status.
    prompt_tokens: read, or kept from another request.
    cached_tokens: of these, kept.
    answer_tokens: generated.
    first_token: seconds from the head of a request to its first token.
    seconds: that answers took.
    entries_read: visual KV entries that a query head read, summed over tokens.
    entries_saved: those that dense attention would have read beside.
  """

  def __init__(self, engine: engine_lib.Engine):
    self._registry = prometheus_client.CollectorRegistry()
    self.requests = self._counter("requests", "Requests ended.", ["status"])
    self.prompt_tokens = self._counter(
      "prompt_tokens", "Tokens of prompts, visual and context tokens included."
    )
    self.cached_tokens = self._counter(
      "cached_tokens", "Those that had been read for another request."
    )
    self.answer_tokens = self._counter("answer_tokens", "Tokens generated.")
    self.first_token = self._histogram(
      "first_token_seconds", "From the head of a request to its first token."
    )
    self.seconds = self._histogram("answer_seconds", "That answers took.")
    self.entries_read = self._counter(
      "visual_entries_read",
      "Visual KV entries read by a query head, summed over tokens.",
    )
    self.entries_saved = self._counter(
      "visual_entries_saved", "Those that dense attention had read beside."
    )
    self._gauge("waiting_requests", "Without a row.", lambda: engine.waiting)
    self._gauge("live_requests", "With a row.", lambda: engine.live)
    self._gauge(
      "pool_bytes", "Of keys and values of rows.", lambda: engine.nbytes[0]
    )
    self._gauge(
      "kept_bytes", "Of kept contexts likewise.", lambda: engine.nbytes[1]
    )

  def text(self) -> bytes:
    """Prometheus's text format."""
    return prometheus_client.generate_latest(self._registry)

  def _counter(
    self, name: str, what: str, labels: Sequence[str] = ()
  ) -> prometheus_client.Counter:
    return prometheus_client.Counter(
      f"gaze_{name}", what, labels, registry=self._registry
    )

  def _histogram(self, name: str, what: str) -> prometheus_client.Histogram:
    return prometheus_client.Histogram(
      f"gaze_{name}", what, registry=self._registry, buckets=_SECONDS
    )

  def _gauge(self, name: str, what: str, value: Callable[[], int]) -> None:
    gauge = prometheus_client.Gauge(
      f"gaze_{name}", what, registry=self._registry
    )
    gauge.set_function(value)
