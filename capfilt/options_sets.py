"""Options of the commands in `cli_sets.py`, which read finished data sets."""

from __future__ import annotations

from typing import Annotated

from capfilt.options import OUTPUT, READ, argument, option

# --- Arguments ------------------------------------------------------------------------------------------------------

Filtered = Annotated[str, argument("DATASET", "Filtered set, or a shard set that has only one.")]
ExportFolder = Annotated[str, argument("OUT", "Folder to write to.")]

# --- What to read ---------------------------------------------------------------------------------------------------

Compare = Annotated[list[str] | None, option(READ, "Filtered set to compare with; repeatable.", metavar="DATASET")]
Decontaminate = Annotated[
    list[str] | None, option(READ, "Leave out copies of the pictures in DIR; repeatable.", metavar="DIR")
]

# --- Output ---------------------------------------------------------------------------------------------------------

Page = Annotated[str | None, option(OUTPUT, "HTML file to write.", metavar="FILE", default="report.html")]
GalleryPictures = Annotated[int | None, option(OUTPUT, "Pictures of each kind in the gallery.", default=24)]
EXPORTS = ("webdataset", "parquet", "json")
ExportFormat = Annotated[
    str | None, option(OUTPUT, "webdataset, parquet or json.", default="webdataset", values=EXPORTS)
]
Licence = Annotated[str | None, option(OUTPUT, "Licence of the pairs, for the data set card.")]
