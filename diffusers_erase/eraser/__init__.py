"""An eraser: its config, files, payloads and card, whatever made it."""
