"""tensorflow-datasets builder of the embedded task. Importing this package does not import tensorflow-datasets."""
