"""Builder of PadChest: chest radiographs with Spanish reports."""
