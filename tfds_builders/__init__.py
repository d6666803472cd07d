"""TFDS builders, one package per dataset; importing this package loads nothing."""
