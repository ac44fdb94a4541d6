"""Small real models."""
