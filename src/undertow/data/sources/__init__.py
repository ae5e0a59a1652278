"""The datasets: one file each, found by name through ``undertow.data.load.DATASETS``."""
