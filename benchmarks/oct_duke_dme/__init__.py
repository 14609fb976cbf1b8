"""The run on real OCT."""
