"""Builder of NCT-CRC-HE-100K and CRC-VAL-HE-7K."""
