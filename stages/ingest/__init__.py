"""Ingest: annotations as their datasets publish them, to region rows. `stages.ingest.sources` is the entry."""
