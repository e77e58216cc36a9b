"""The model: config, entropy path (over numpy or torch; importing it imports no torch), transforms and torch module."""
