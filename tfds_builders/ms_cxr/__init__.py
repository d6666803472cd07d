"""Builder of MS-CXR: phrases of reports with boxes, on images of MIMIC-CXR."""
