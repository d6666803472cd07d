"""Builder of MIMIC-CXR: radiographs of MIMIC-CXR-JPG with the reports of MIMIC-CXR."""
