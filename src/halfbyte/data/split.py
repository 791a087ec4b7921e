"""Rows -> train, validation and test, without a page, a prompt or a near copy on two sides.

A book is split where it stands: its end is the test part, what comes before that validates, with a gap between, so that
neighbouring pages do not tell on each other. Other rows are drawn by hash, so that adding or reordering rows moves few others;
rows that share a prompt, a response or a group, or are nearly the same, stay together; classes keep their shares.
Parts that are given as files are compared with each other (overlap.py).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from halfbyte.data.near import connected, equal_keys
from halfbyte.data.overlap import compare_given
from halfbyte.data.sides import OUT, SIDES, TEST, TRAIN, VALIDATION
from halfbyte.data.survey import Survey, left_out
from halfbyte.errors import DataError
from halfbyte.recipe.plan import Decision
from halfbyte.recipe.schema import LabelData, SettledData, TextData
