"""What every pass needs from the IR."""
