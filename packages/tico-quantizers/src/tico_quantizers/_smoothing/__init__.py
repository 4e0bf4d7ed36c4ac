"""What SmoothQuant and AWQ share: pairs of layers, and scales that pass from one to the other."""
