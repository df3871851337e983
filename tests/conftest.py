"""For all tests: one thread a process, set before torch is imported. Models this small lose by more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
