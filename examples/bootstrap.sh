#!/usr/bin/env bash
# The whole of CapFilt, in order, on your own pairs. Sizes are the paper's; the hours are for you to measure.
#
#   urls.parquet         columns url, caption: the noisy web pairs
#   clean/train.json     [{"image": "a.jpg", "caption": "..."}, ...]: a small set written by people (the paper: COCO)
#   clean/test.json      [{"image": "b.jpg", "caption": ["...", ...]}, ...]: held out, several captions a picture
#
# Every command can be killed at any moment and given again: it finishes what is left and changes nothing else.
set -euo pipefail

# 1. Fetch the pictures: tar shards, and one table row for every URL with its outcome.
capfilt download urls.parquet data --workers 8

# 2. A first model on the noise. ViT-B/16 from supervised weights, BERT-base's vocabulary.
capfilt pretrain data clean/train.json --out runs/first --preset base \
    --vision deit_base_patch16_224.pth --tokenizer bert-base-uncased \
    --set train.epochs=20 --batch-size 75 --lr 3e-4 --set train.warmup_steps=3000

# 3. From it, two models on the clean set: one that writes captions, one that judges pairs.
capfilt finetune caption clean/train.json --init runs/first/model --out runs/captioner --set train.epochs=5 \
    --set image_size=384
capfilt finetune retrieval clean/train.json --init runs/first/model --out runs/filter --set train.epochs=6 \
    --set image_size=384

# 4. A synthetic caption for every picture (nucleus sampling, p = 0.9), then judge web and synthetic texts alike and
#    rewrite the data set: data/filtered/round1/*.parquet, one row a text, dropped ones with their reason.
capfilt caption data --model runs/captioner/model --name round1
capfilt filter data --model runs/filter/model --name round1

# 5. A new model, from scratch, on what was kept and the clean set.
capfilt pretrain data/filtered/round1 clean/train.json --out runs/second --preset base \
    --vision deit_base_patch16_224.pth --tokenizer bert-base-uncased \
    --set train.epochs=20 --batch-size 75 --lr 3e-4 --set train.warmup_steps=3000

# 6. Is it better? Both models, on pictures that neither has seen.
for run in first second; do
    capfilt evaluate retrieval clean/test.json --model "runs/$run/model" --json
    capfilt evaluate caption clean/test.json --model "runs/$run/model" --set generate.prompt= --json
done
