"""What is learned and how success is measured, one file each."""
