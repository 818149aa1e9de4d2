"""The Open Inference Protocol: LatentEngine's methods as models that take and give tensors."""
