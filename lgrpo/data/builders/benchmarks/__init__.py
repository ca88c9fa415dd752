"""tensorflow-datasets builder of the registered data sets. Importing this package does not import tensorflow-datasets."""
