"""bertcli: pretrain and fine-tune BERT-family encoders from a recipe."""

__version__ = "0.1.0"
