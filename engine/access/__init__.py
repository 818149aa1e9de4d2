"""What every call passes on its way in and out: who may come in, what is refused, and what is written down."""
