"""Is this adapter backdoored? Asked of the adapter itself, without its data, its trigger or its target."""
