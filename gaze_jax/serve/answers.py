"""Answers as the OpenAI API writes them: whole, and in chunks."""

import dataclasses
import json
import secrets
import time
from typing import Any

import numpy as np

from gaze_jax import config as config_lib
from gaze_jax.decode import accounting
from gaze_jax.decode import scheduler as scheduler_lib
from gaze_jax.serve import chat_request
from gaze_jax.serve import engine as engine_lib
from gaze_jax.serve import trace


@dataclasses.dataclass
class Writer:
  """Writes the answer to one request.

  Args:
    asked: the request.
    job: of it.
    config: the model's.
    geometry: `trace.geometry` of it; None unless it is traced.
  """

  asked: chat_request.Asked
  job: scheduler_lib.Job
  config: config_lib.ModelConfig
  geometry: dict[str, Any] | None

  def __post_init__(self):
    self._common = dict(
      id=f"chatcmpl-{secrets.token_hex(12)}",
      created=int(time.time()),
      model=self.asked.model,
    )

  def whole(
    self, text: str, updates: list[engine_lib.Update]
  ) -> dict[str, Any]:
    """A `chat.completion`.

    Args:
      text: of the answer.
      updates: all of it.
    """
    last = updates[-1]
    message = dict(role="assistant", content=text, refusal=None)
    choice = dict(
      index=0, message=message, logprobs=None, finish_reason=last.reason
    )
    out = self._common | dict(
      object="chat.completion", choices=[choice], usage=self._usage(last)
    )
    if self.asked.gaze:
      out["gaze"] = dict(accounting=self._accounting(last.result))
    if self.geometry:
      pieces = [piece for update in updates for piece in update.pieces]
      chosen = [u.chosen for u in updates if u.chosen is not None]
      out["gaze"]["trace"] = self.geometry | dict(
        pieces=pieces, chosen=trace.bits(np.concatenate(chosen))
      )
    return out

  def first_chunk(self) -> bytes:
    """Says who speaks, and where regions are."""
    gaze = dict(trace=self.geometry) if self.geometry else None
    return self._chunk(dict(role="assistant", content=""), None, gaze)

  def chunk(self, update: engine_lib.Update) -> bytes:
    """What an update adds; b"" for nothing."""
    gaze = None
    if self.geometry and len(update.pieces):
      chosen = trace.bits(update.chosen)
      gaze = dict(trace=dict(pieces=list(update.pieces), chosen=chosen))
    if not update.text and gaze is None:
      return b""
    return self._chunk(dict(content=update.text), None, gaze)

  def last_chunks(self, update: engine_lib.Update) -> bytes:
    """Why it ended, what it took, and that no more comes."""
    gaze = None
    if self.asked.gaze:
      gaze = dict(accounting=self._accounting(update.result))
    out = self._chunk({}, update.reason, gaze)
    if self.asked.usage:
      usage = dict(choices=[], usage=self._usage(update))
      out += event(self._common | dict(object=_CHUNK) | usage)
    return out + b"data: [DONE]\n\n"

  def _chunk(
    self, delta: dict[str, Any], reason: str | None, gaze: Any
  ) -> bytes:
    choice = dict(index=0, delta=delta, logprobs=None, finish_reason=reason)
    out = self._common | dict(object=_CHUNK, choices=[choice])
    if self.asked.usage:
      out["usage"] = None
    if gaze is not None:
      out["gaze"] = gaze
    return event(out)

  def _usage(self, update: engine_lib.Update) -> dict[str, Any]:
    """Tokens of the prompt, of all kinds, and of the answer."""
    prompt = self.prompt_tokens
    return dict(
      prompt_tokens=prompt,
      completion_tokens=update.tokens,
      total_tokens=prompt + update.tokens,
      prompt_tokens_details=dict(cached_tokens=update.reused),
    )

  @property
  def prompt_tokens(self) -> int:
    """Slots of the prompt."""
    return self.job.after.length + self.job.after.visual_tokens

  def _accounting(self, result: scheduler_lib.Result) -> dict[str, Any]:
    """What docs/method.md, section 8, counts, but for the time of a step."""
    after, config = self.job.after, self.config
    own = after.context_tokens(config.gaze)
    entries, unique = (n + own for n in result.entries)
    visual = after.visual_tokens
    kv, descriptors = accounting.visual_bytes(config, len(after.sizes))
    return dict(
      budget=self.job.prompt.budget,
      unit=config.gaze.budget,
      regions=len(after.sizes),
      visual_tokens=visual,
      entries_per_query_head=entries,
      unique_entries_per_kv_head=unique,
      visual_kv_fraction=entries / max(visual, 1),
      unique_visual_kv_fraction=unique / max(visual, 1),
      kv_bytes=kv,
      descriptor_bytes=descriptors,
    )


_CHUNK = "chat.completion.chunk"


def event(data: dict[str, Any]) -> bytes:
  """A server-sent event."""
  return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
