"""The `nnunet-qa` command; no logic that the library lacks."""
