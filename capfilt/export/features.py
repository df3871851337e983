"""Features of Hugging Face `datasets` for the columns of an exported Parquet file, without importing `datasets`."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

# Names of Arrow types that `datasets` spells in another way.
DTYPES = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}
DTYPES["date64[ms]"] = "date64"


def parquet_schema(columns: dict[str, pa.DataType]) -> pa.Schema:
    """Return the schema of a file with these columns after `image`, with the features that `datasets` reads from it."""
    features = {name: _feature(data_type) for name, data_type in columns.items()}
    info = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema([("image", image), *columns.items()], metadata={"huggingface": json.dumps(info)})


def _feature(data_type: pa.DataType) -> Any:
    if pa.types.is_list(data_type):
        return [_feature(data_type.value_type)]
    if pa.types.is_struct(data_type):
        return {field.name: _feature(field.type) for field in data_type}
    return {"dtype": DTYPES.get(str(data_type), str(data_type)), "_type": "Value"}
