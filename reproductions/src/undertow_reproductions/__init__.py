"""The tables and figures of papers, each a short file that reads like its caption."""
