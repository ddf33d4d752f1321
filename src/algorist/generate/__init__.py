"""Rollouts: prompts in, responses out. native.py samples in process, server.py asks an OpenAI-compatible server."""
