"""For all tests: one thread a process, set before torch is imported. Models this small lose by more.

Helpers that other processes import by name too lie beside the tests of `blipcore`.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent / "blipcore"))
