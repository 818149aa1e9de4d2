"""What the service's methods do: from messages to models and back."""
