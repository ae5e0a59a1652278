"""``undertow federate``: an experiment whose clients train on other machines, over Flower's SuperLink and SuperNodes."""
