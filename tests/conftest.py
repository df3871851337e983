"""Limits every test process to one thread, before torch is imported: more threads slow down models this small."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
