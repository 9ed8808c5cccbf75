"""Gaze Attention: a multimodal LLM that looks only at what it needs."""
