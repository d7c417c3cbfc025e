#!/usr/bin/env bash
# All figures of this folder: bash run.sh DIR [PER_CLASS], from the root of the checkout. 300 images a class are 6 GB, shards as much again.
set -euo pipefail
DIR=$1 PER_CLASS=${2:-300} HERE=$(dirname "$0")
export CILBENCH_DATA=$DIR/data CILBENCH_RESIDENT_BYTES=0 OMP_NUM_THREADS=1  # no task's images are held in memory

python -m tools.synthetic_imagenet "$DIR/files" --classes 200 --per-class "$PER_CLASS"
python -m tools.synthetic_imagenet "$DIR/fewer" --classes 200 --per-class $((PER_CLASS / 10))
python -m tools.synthetic_imagenet "$DIR/small" --classes 10 --per-class 60
mkdir -p "$DIR/shards"
(cd "$DIR/files" && find . -name '*.JPEG' | sort | split -n r/8 - ../list.)  # dealt out in turn
for list in "$DIR"/list.*; do tar -cf "$DIR/shards/${list##*.}.tar" -C "$DIR/files" -T "$list"; done

for name in files fewer shards; do python "$HERE/peak.py" cilbench data import $name "$DIR/$name" --size 64 --in-place; done
cilbench data import small-files "$DIR/small" --size 224 --in-place
cilbench data import small-pixels "$DIR/small" --size 224

for name in files fewer shards; do
    python "$HERE/peak.py" cilbench run --dataset $name --inc 50 --methods replay --budget 20MB --backbone convnet2 --recipe smoke \
        --set replay.max_steps=15 --set replay.batch_size=64 --precision fp32 --device cpu --threads 1 --out "$DIR/runs"
done
python "$HERE/same.py" "$DIR"/runs/replay-files-* "$DIR"/runs/replay-shards-*
python "$HERE/decoding.py" "$CILBENCH_DATA" small-files small-pixels
