"""Builder of SLAKE: bilingual questions about radiology images, with masks and boxes."""
