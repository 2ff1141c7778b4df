"""Makes what stands in this folder known to the tests in the folders below it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
