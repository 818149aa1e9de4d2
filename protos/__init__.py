"""The wire contract `dfcvae.v1`, and the code generated from it (`make protos`)."""
