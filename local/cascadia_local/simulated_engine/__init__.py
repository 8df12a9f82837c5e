"""A process that speaks SGLang's HTTP surface, with batching timed by the cost model and no GPU.

Answers are made up, and say so. When they come, how long they are, how sure the model seems and
whether they are right follow seeded models (`difficulty`) or a recorded calibration set (`outcomes`).

The engine process imports the standard library, uvloop, httptools, msgspec and two modules of the
solver (`steptime`, `batcher`), so that it starts in a fraction of a second and stays small.
"""
