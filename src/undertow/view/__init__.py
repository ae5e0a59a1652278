"""``undertow view``: runs, sweeps, scans and audits of a folder as a local page, read-only, also while they run."""
