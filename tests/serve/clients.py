"""Clients of a server, in a process of their own: requests in, answers out.

Reads JSON from stdin: `url`, `at_once`, and `requests`, the arguments of
`chat.completions.create`. Prints the JSON of each answer: its text, why it
ended, and its trace.
"""

import asyncio
import json
import sys

import openai


async def ask(client, request):
  got = await client.chat.completions.create(**request)
  if not request.get("stream"):
    gaze = got.model_dump().get("gaze") or {}
    choice, trace = got.choices[0], gaze.get("trace", {})
    return dict(
      text=choice.message.content,
      reason=choice.finish_reason,
      pieces=trace.get("pieces"),
      chosen=trace.get("chosen"),
    )
  text, reason = "", None
  async for chunk in got:
    text += chunk.choices[0].delta.content or ""
    reason = chunk.choices[0].finish_reason or reason
  return dict(text=text, reason=reason, pieces=None, chosen=None)


async def main(given):
  async with openai.AsyncOpenAI(
    base_url=f"{given['url']}/v1", api_key="none", max_retries=0, timeout=300
  ) as client:
    if given["at_once"]:
      asked = [ask(client, request) for request in given["requests"]]
      return await asyncio.gather(*asked)
    return [await ask(client, request) for request in given["requests"]]


if __name__ == "__main__":
  print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
