"""The proof that engines compute what PyTorch computes: its answers, the comparison, and where it was made."""
