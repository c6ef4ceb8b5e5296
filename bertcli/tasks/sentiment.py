"""Task definitions for sentiment, other than GLUE's SST-2."""

from __future__ import annotations

from bertcli.tasks.task import Splits, Task

ROWS = (
    Task(
        name="sentiment/imdb",
        dataset="stanfordnlp/imdb",
        # The dataset has no validation split; a part of the training reviews is held out.
        splits=Splits(validation=None),
        text_columns=("text",),
        labels=("neg", "pos"),
        metrics=("accuracy",),
        description="long movie reviews (Maas et al. 2011)",
    ),
    Task(
        name="sentiment/rotten-tomatoes",
        dataset="cornell-movie-review-data/rotten_tomatoes",
        text_columns=("text",),
        labels=("neg", "pos"),
        metrics=("accuracy",),
        description="sentences from movie reviews (Pang and Lee 2005)",
    ),
)
