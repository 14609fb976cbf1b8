"""One script a dataset family, runnable by path and as `nnunet-qa convert SOURCE`."""
