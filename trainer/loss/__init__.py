"""VGG19 features and the loss of the seed document."""
