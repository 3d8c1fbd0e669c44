"""What the scripts at the root stand on: one concern a file, none of which imports a script."""
