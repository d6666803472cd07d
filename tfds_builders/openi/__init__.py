"""Builder of the Indiana University chest X-rays (Open-i, IU X-ray)."""
