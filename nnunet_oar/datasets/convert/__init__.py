"""Published data sets to nnU-Net's raw format: one module per data set that finds its files, and what they share."""
