"""Learning from the engines' own metrics by how much the cost model is off."""
