"""From names and files to samples: data sets, augmentation, the mapper and the policy of sources."""
