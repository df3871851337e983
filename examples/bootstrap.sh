#!/usr/bin/env bash
# The whole loop on your own pairs. The sizes are the paper's.
#
#   urls.parquet         columns url, caption: the noisy web pairs
#   clean/train.json     [{"image": "a.jpg", "caption": "..."}, ...]: a small set written by people (the paper: COCO)
#   clean/test.json      [{"image": "b.jpg", "caption": ["...", ...]}, ...]: held out, several captions per picture
#
# A killed command resumes when you repeat it.
set -euo pipefail

# 1. Download the pictures: tar shards, and one table row per URL with its outcome.
capfilt download urls.parquet data --workers 8

# 2. Pre-train a first model on the noisy texts: ViT-B/16 from supervised weights, BERT-base's vocabulary.
capfilt pretrain data clean/train.json --out runs/first --preset base \
    --vision deit_base_patch16_224.pth --tokenizer bert-base-uncased \
    --set train.epochs=20 --batch-size 75 --lr 3e-4 --set train.warmup_steps=3000

# 3. Finetune two models on the clean set: a captioner and a filter.
capfilt finetune caption clean/train.json --init runs/first/model --out runs/captioner --set train.epochs=5 \
    --set image_size=384
capfilt finetune retrieval clean/train.json --init runs/first/model --out runs/filter --set train.epochs=6 \
    --set image_size=384

# 4. Write a synthetic caption per picture (nucleus sampling, p = 0.9), then score web and synthetic texts and write the
#    filtered set: data/filtered/round1/*.parquet, one row per text with its verdict.
capfilt caption data --model runs/captioner/model --name round1
capfilt filter data --model runs/filter/model --name round1

# 5. Pre-train a new model from scratch on the kept texts and the clean set.
capfilt pretrain data/filtered/round1 clean/train.json --out runs/second --preset base \
    --vision deit_base_patch16_224.pth --tokenizer bert-base-uncased \
    --set train.epochs=20 --batch-size 75 --lr 3e-4 --set train.warmup_steps=3000

# 6. Evaluate both models on held-out pictures.
for run in first second; do
    capfilt evaluate retrieval clean/test.json --model "runs/$run/model" --json
    capfilt evaluate caption clean/test.json --model "runs/$run/model" --set generate.prompt= --json
done
