"""Lists that pandas or JSON wrote into a cell of a text table."""

from __future__ import annotations

import ast
import json
from typing import Any


def parse_list(cell: Any) -> Any:
    """Return the list of texts or objects that a text holds; other cells as they are."""
    if not isinstance(cell, str) or not cell.startswith("[") or not cell.rstrip().endswith("]"):
        return cell
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        # Python joins the texts of "['a' 'b']", a NumPy array.
        written = parse is json.loads or repr(value) == cell.strip()
        if written and value and any(all(isinstance(item, kind) for item in value) for kind in (str, dict)):
            return value
    return cell
