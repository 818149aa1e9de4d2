"""What is made of a trained model: attribute directions, the prior of new faces, samples and the model card."""
