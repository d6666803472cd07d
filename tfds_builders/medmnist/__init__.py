"""Builder of MedMNIST v2: small biomedical images and volumes."""
