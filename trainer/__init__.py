"""Training: data, model, loss, loop, attribute directions, and the judging of a run."""
