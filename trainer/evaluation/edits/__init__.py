"""Edits along attribute directions: how many faces they flip, and what else they change."""
