"""Scripts behind every claim of speed and accuracy."""
