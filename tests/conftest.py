"""For all tests: one thread a process, set before torch is imported. Models this small lose by more.

Helpers that other processes import by name too lie beside the tests of `blipcore`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
