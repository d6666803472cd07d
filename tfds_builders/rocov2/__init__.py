"""Builder of ROCOv2: radiology figures with captions and concepts."""
