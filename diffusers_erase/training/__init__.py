"""Ways in, by gradient: objectives, recipes and the loop."""
