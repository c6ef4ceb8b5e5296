"""One file for each kind of answer; `HEADS` finds them by the name a task row gives."""

from __future__ import annotations

from bertcli.heads.base import Head
from bertcli.heads.multiple_choice import MultipleChoice
from bertcli.heads.question_answering import QuestionAnswering
from bertcli.heads.text_classification import TextClassification
from bertcli.heads.token_classification import TokenClassification
from bertcli.tasks.task import HeadName

HEADS: dict[HeadName, type[Head]] = {
    "text_classification": TextClassification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
}
