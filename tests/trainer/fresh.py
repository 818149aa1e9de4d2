"""Processes of their own that have PyTorch from the start: forked from one that has loaded it, once for all of them."""

import multiprocessing

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["trainer.training"])
