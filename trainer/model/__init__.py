"""The VAE, and the attribute head that is trained beside it."""

from trainer.model.vae import VAE, Decoder, Encoder, Output, Posterior

__all__ = ["VAE", "Decoder", "Encoder", "Output", "Posterior"]
