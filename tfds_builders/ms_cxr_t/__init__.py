"""Builder of MS-CXR-T: change between two studies, and sentences about change."""
