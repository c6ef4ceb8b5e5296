"""Sentiment rows beside GLUE's SST-2."""

from __future__ import annotations

from bertcli.tasks.task import Splits, Task

ROWS = (
    Task(
        name="sentiment/imdb",
        dataset="stanfordnlp/imdb",
        # The hub's data set has no validation split; reviews are held out of the training ones.
        splits=Splits(validation=None),
        text_columns=("text",),
        labels=("neg", "pos"),
        metrics=("accuracy",),
        description="long film reviews (Maas et al. 2011)",
    ),
    Task(
        name="sentiment/rotten-tomatoes",
        dataset="cornell-movie-review-data/rotten_tomatoes",
        text_columns=("text",),
        labels=("neg", "pos"),
        metrics=("accuracy",),
        description="sentences of film reviews (Pang and Lee 2005)",
    ),
)
