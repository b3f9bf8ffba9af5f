# SPDX-License-Identifier: Apache-2.0
"""The page of a run: one HTML file that needs nothing else.

| module | holds |
|---|---|
| ``charts`` | lines, steps and bars, as numbers for a template to draw |
| ``history`` | what a recording says of every sample |
| ``classes``, ``samples`` | what a page shows of them |
| ``cost`` | what the seconds were spent on |
| ``view`` | all that a page says of one run |
| ``page`` | the file |
| ``png`` | an image as the text of a link |
"""
