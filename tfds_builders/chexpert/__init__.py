"""Builder of CheXpert, with the reports of CheXpert Plus where they are there."""
