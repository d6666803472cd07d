"""Builder of QUILT-1M: histopathology images with captions."""
