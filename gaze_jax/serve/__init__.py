"""A server that speaks the OpenAI API; docs/serve.md is what it promises."""
