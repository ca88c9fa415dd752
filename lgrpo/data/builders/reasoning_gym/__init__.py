"""tensorflow-datasets builder of reasoning-gym. Importing this package does not import tensorflow-datasets."""
