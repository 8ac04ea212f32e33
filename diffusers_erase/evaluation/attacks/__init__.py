"""Ways back: how much of an erased concept somebody gets who tries."""
