"""Foundation models that write labelled data for the server: one generator, one file."""
