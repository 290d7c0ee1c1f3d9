"""Search by trials (ask and tell), and stop."""
