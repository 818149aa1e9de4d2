"""Procedural faces: a data set in CelebA's on-disk layout, drawn rather than downloaded."""

from trainer.faces.person import ATTRIBUTES, Face, sample_face
from trainer.faces.picture import render_face
from trainer.faces.writer import FACES_VERSION, write_faces

__all__ = ["ATTRIBUTES", "FACES_VERSION", "Face", "render_face", "sample_face", "write_faces"]
