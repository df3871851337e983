"""The data toolkit: download, caption, filter, rewrite, retrain."""
