"""Encoding at scale: a folder of images to a Parquet data set of latents, by any number of servers."""
