"""Builder of VQA-Med 2019: questions of ImageCLEF about radiology images."""
