"""Datasets of image pairs with edit regions, as a folder, as parquet files or as WebDataset shards."""
