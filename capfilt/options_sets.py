"""Options of the commands in `cli_sets.py`, which read finished data sets."""

from __future__ import annotations

from typing import Annotated

from capfilt.options import CAPTION, DECIDE, MODEL, OUTPUT, READ, RUN, TRAIN, argument, option

# --- Arguments ------------------------------------------------------------------------------------------------------

Filtered = Annotated[str, argument("DATASET", "Filtered set, or a shard set that has only one.")]
ExportFolder = Annotated[str, argument("OUT", "Folder to write to.")]

# --- What to read ---------------------------------------------------------------------------------------------------

Compare = Annotated[list[str] | None, option(READ, "Filtered set to compare with; repeatable.", metavar="DATASET")]
Decontaminate = Annotated[
    list[str] | None, option(READ, "Leave out copies of the pictures in DIR; repeatable.", metavar="DIR")
]

CaptionsToMerge = Annotated[
    str | None, option(READ, "Captions to merge with the web texts.", "--source", default="the only ones")
]
TrialSets = Annotated[
    list[str], argument("SET", "Filtered sets or shard sets; the others are compared with the first.")
]
TrialTests = Annotated[
    list[str] | None, option(READ, "Held-out annotations: FILE, caption=FILE or retrieval=FILE; repeatable.", "--test")
]
HumanPairs = Annotated[
    list[str] | None, option(READ, "Human pairs, the same for all sets; repeatable.", metavar="FILE")
]
LABEL_ORDERS = ("random", "proposed")
LabelOrder = Annotated[
    str | None,
    option(READ, "random, or proposed: also uncertain and disputed texts.", default="random", values=LABEL_ORDERS),
]
LabelNumber = Annotated[int | None, option(READ, "Texts to label.", default=300)]

# --- How to caption -------------------------------------------------------------------------------------------------

FusePrompt = Annotated[str | None, option(CAPTION, "Instruction with {web} and {caption}.", "--prompt")]
TextModel = Annotated[
    str | None, option(MODEL, "Model behind a server that merges the texts, openai:MODEL.", "--model")
]

# --- How to train ---------------------------------------------------------------------------------------------------

TrialSeeds = Annotated[int | None, option(TRAIN, "Training runs per set.", "--seeds", default=3)]
TrialSteps = Annotated[int | None, option(TRAIN, "Optimizer steps of each run.", "--steps", default=2000)]
FinetuneSteps = Annotated[int | None, option(TRAIN, "Steps of finetuning on the human pairs before a test.", default=0)]

# --- Where to run ---------------------------------------------------------------------------------------------------

Host = Annotated[str | None, option(RUN, "Address to listen at.", default="127.0.0.1")]
Port = Annotated[int | None, option(RUN, "Port to listen at; 0 takes any that is free.", default=8765)]

# --- How to decide ----------------------------------------------------------------------------------------------------

CopyCosine = Annotated[
    float | None,
    option(DECIDE, "Drop pictures whose cosine with a better one is at least this, such as 0.95.", "--duplicates"),
]
Like = Annotated[str | None, option(DECIDE, "Keep pictures like those of this shard set.", metavar="DATA")]
LikeFraction = Annotated[
    float | None, option(DECIDE, "Share of the pictures to keep, those most like --like.", "--top-fraction")
]
PerCluster = Annotated[int | None, option(DECIDE, "Pictures to keep per cluster, the best.")]

# --- Output ---------------------------------------------------------------------------------------------------------

Page = Annotated[str | None, option(OUTPUT, "HTML file to write.", metavar="FILE", default="report.html")]
FusedName = Annotated[str | None, option(OUTPUT, "Name of the merged texts.", "--name", default="fused")]
TextsToLabel = Annotated[int | None, option(OUTPUT, "Texts in a view for labelling by hand.", default=0)]
TrialFolder = Annotated[str | None, option(OUTPUT, "Folder of the runs and the result.", "--out", default="trial")]
LabelsFile = Annotated[
    str | None, option(OUTPUT, "CSV file of labels to write or continue.", metavar="FILE", default="labels.csv")
]
GalleryPictures = Annotated[int | None, option(OUTPUT, "Pictures of each kind in the gallery.", default=24)]
EXPORTS = ("webdataset", "parquet", "json", "textfiles", "clip_benchmark", "datacomp")
ExportFormat = Annotated[str | None, option(OUTPUT, f"{', '.join(EXPORTS)}.", default="webdataset", values=EXPORTS)]
SelectedName = Annotated[str, option(OUTPUT, "Name of the new filtered set.", "--name")]
Licence = Annotated[str | None, option(OUTPUT, "Licence of the pairs, for the data set card.")]
