"""Builder of the RSNA Pneumonia Detection Challenge."""
