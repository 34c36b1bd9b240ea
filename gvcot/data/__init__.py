"""Where editing samples come from."""
