"""The folder that is built: what goes into it, where it is put, what it says of itself, and Triton's form of it."""
