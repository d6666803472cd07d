"""Builder of COVIDx CXR: chest radiographs with and without COVID-19."""
