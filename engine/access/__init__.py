"""Who may come in, and with how much: tokens and certificates, the rate of each client, admission."""
