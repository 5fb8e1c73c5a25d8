"""Offline work on text: from raw documents to the corpora that training reads, and the commands for it."""
