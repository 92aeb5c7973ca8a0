"""One small file a data set: from the layout its owner publishes to a manifest."""
