"""Which cases to annotate next."""
