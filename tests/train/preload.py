"""What the ranks of tests are forked from: a process that has imported what takes seconds, and has trained nothing."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"  # as the engine does before it imports DeepSpeed
os.environ.setdefault("LOCAL_RANK", "0")

import distft.train.loop  # noqa: F401
import tests.train.ranks  # noqa: F401
from distft.train.engine import import_deepspeed

import_deepspeed()
