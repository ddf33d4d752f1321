"""An OpenAI-compatible server over our own sampler: the teacher and judge of tests and laptops.

`wire` reads requests and writes replies, `models` answers them, `queue` batches them, `app` listens.
"""
