"""train.py with a picture book of plain shapes: python tests/train_on_shapes.py text ..., as train.py text ..."""

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import fake_book

import train
from minidiff import text_tasks

text_tasks.picturebook = fake_book
torch.set_num_threads(1)

if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:]))
