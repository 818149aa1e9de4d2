"""What follows from the latents of a trained model: attribute directions and the prior of new faces."""
