"""Planning for Cascadia: what models on GPUs will do, and which plan is best.

The performance side (`catalogue`, `steptime`, `roofline`, `batcher`, `simulation`,
`operating_point`, `prediction`) answers what one replica, one stage or one cascade would do under a load.

Import the module that you need; this file imports next to nothing, so that a simulated engine can
load `steptime` and `batcher` without numpy or numba.
"""

import os

# Matrices here have a hundred rows: threads would spend many times the work on waiting for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
