"""Builder of the SIIM-ACR Pneumothorax Segmentation challenge."""
