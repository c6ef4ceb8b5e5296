"""Task definitions for multiple choice."""

from __future__ import annotations

from bertcli.tasks.task import Reference, Task

ROWS = (
    Task(
        name="choice/swag",
        head="multiple_choice",
        dataset="allenai/swag",
        config="regular",
        text_columns=("sent1", "sent2"),
        choice_columns=("ending0", "ending1", "ending2", "ending3"),
        metrics=("accuracy",),
        description="which sentence comes next? (Zellers et al. 2018)",
        reference=Reference(
            model="google-bert/bert-base-uncased",
            scores={"accuracy": 0.816},
            source="Devlin et al. 2019, table 4",
        ),
    ),
)
